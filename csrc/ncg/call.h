// One call of an operation, as plain data: what the bindings hand to either backend.
#pragma once

#include <cstdint>

#include "ncg/chunk.h"
#include "ncg/driver.h"
#include "ncg/vectors.h"

namespace ncg {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1 };

struct Call {
  void* operand[kMaxVectors];  // in the operation's order; operand[0] is ignored where there is a table
  Table table;                 // in host memory, of pointers to where the vectors live
  std::int64_t n;              // elements of every operand, padding included
  CgState* state;              // of the solve that this is a pass of; null: called on its own, with
  double params[kMaxParams];   //   the operation's scalars and
  double* out;                 //   room for its sums
  double* partials;            // room for partials_size(n) numbers
  // CUDA only:
  void* ticket;  // two uint32, zero before the first call and after every call
  void* stream;  // cudaStream_t
};

// The float64 numbers of workspace that any operation on n elements needs.
constexpr std::int64_t partials_size(std::int64_t n) { return chunk_count(n) * kMaxSums; }

template <class Op>
Vectors<typename Op::Scalar, Op::kVectors> vectors_of(const Call& call) {
  Vectors<typename Op::Scalar, Op::kVectors> vectors{};
  for (int k = 0; k < Op::kVectors; ++k) vectors.flat[k] = static_cast<typename Op::Scalar*>(call.operand[k]);
  vectors.table = call.table;
  return vectors;
}

// Calls f with the driver that the call asks for.
template <class Op, bool kInSolve, class F>
auto with_driver(const Call& call, F&& f) {
  if constexpr (kInSolve) {
    if (call.state != nullptr) return f(InSolve<Op>{call.state});
  }
  return f(Direct<Op>{Op::from_params(call.params), call.out});
}

}  // namespace ncg
