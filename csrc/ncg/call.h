// One call of an operation, as plain data: what the bindings hand to either backend.
#pragma once

#include <cstdint>

#include "ncg/driver.h"
#include "ncg/vectors.h"

namespace ncg {

enum class Dtype : int {
  kFloat32 = 0,
  kFloat64 = 1,
  kBfloat16First = 2,  // float32 vectors, but operand 0 in bfloat16
};

struct Call {
  void* operand[kMaxVectors];  // in the operation's order; operand[0] is ignored where there is a table
  Table table;                 // in host memory, of pointers to where the vectors live
  std::int64_t n;              // elements of every operand, padding included
  CgState* state;              // of the solve that this is a pass of; null: called on its own
  double params[kMaxParams];   // the operation's scalars
  double* out;                 // room for the sums of a call on its own
  double* partials;            // room for partials_size(n) numbers
  // CUDA only:
  void* ticket;                    // two uint32, zero before the first call and after every call
  void* stream;                    // cudaStream_t
  const Segment* device_segments;  // the table in device memory; null: the call copies it there if it has to
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
template <class Op, class F>
auto with_driver(const Call& call, F&& f) {
  Scalars scalars{};
  for (int i = 0; i < kMaxParams; ++i) scalars.at[i] = call.params[i];
  scalars.n = call.n;
  if constexpr (Op::kInSolve) {
    if (call.state != nullptr) return f(InSolve<Op>{call.state, scalars});
  }
  return f(Direct<Op>{Op::from_params(scalars), call.out});
}

}  // namespace ncg
