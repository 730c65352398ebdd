// What an operation is made of, and what it need not say because most do not differ in it.
#pragma once

#include <cstdint>

#include "ncg/chunk.h"
#include "ncg/macros.h"
#include "ncg/state.h"

namespace ncg {

// The scalars that a call brings along by value.
struct Scalars {
  double at[kMaxParams];
  std::int64_t n;  // elements of every operand
};

// Every functor in ops/ derives from this. Its operands stand in this order: the first kReads are loaded, the last
// kWritten are stored (one that is neither first nor last is both). What the functor itself declares:
//
//   Scalar                       the vectors' type
//   kVectors, kReads, kWritten   operands
//   kSums                        sums that come out, at most kMaxSums; may be 0
//   operator()(V* v, V* sums)    one element: V is Scalar on the GPU, a vector of kLanes of them on the CPU
//   from_params(scalars)         the functor of a call on its own
//   from_state, finish           kInSolve only: the functor as a pass of a solve, and what its sums do to the state
struct Operation {
  static constexpr bool kInSolve = true;      // can be a pass of a solve
  static constexpr bool kTakesTable = false;  // operand 0 may be a table of tensors, or bfloat16, or both
  static constexpr bool kReversed = false;  // from the end to the beginning, to meet what the pass before left in cache
  static constexpr int kOptional = -1;      // an operand that is left alone where uses_optional() is false

  NCG_HD bool uses_optional() const { return true; }
  // As a pass of a solve: whether there is anything to do.
  static NCG_HD bool wanted(const CgState& s) { return s.stop == 0.0; }
};

// The storage of a product in half the bytes of float32: its upper half. Opt-in, for operand 0 alone.
struct Bfloat16 {
  std::uint16_t bits;
};

NCG_HD float widen(float a) { return a; }
NCG_HD double widen(double a) { return a; }
NCG_HD float widen(Bfloat16 a) {
  const std::uint32_t bits = static_cast<std::uint32_t>(a.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

}  // namespace ncg
