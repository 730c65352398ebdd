// Three sums of two vectors in one pass.
//
//   reads   a, b       8 bytes an element (float32)
//   writes  -
//   sums    a.b, a.a, b.b
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct Dots : Operation {
  using Scalar = T;
  static constexpr int kVectors = 2;  // a, b
  static constexpr int kReads = 2;
  static constexpr int kWritten = 0;
  static constexpr int kSums = 3;
  static constexpr bool kInSolve = false;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    sums[0] += v[0] * v[1];
    sums[1] += v[0] * v[0];
    sums[2] += v[1] * v[1];
  }

  static NCG_HD Dots from_params(const Scalars&) { return {}; }
};

}  // namespace ncg
