// Three sums of two vectors in one pass, each vector times a factor: powers of two that keep squares in range.
//
//   reads   a, b       8 bytes an element (float32)
//   writes  -
//   sums    a.b, a.a, b.b of a = scale_a a, b = scale_b b
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

  T scale_a, scale_b;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V a = scale_a * v[0];
    const V b = scale_b * v[1];
    sums[0] += a * b;
    sums[1] += a * a;
    sums[2] += b * b;
  }

  static NCG_HD Dots from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0]), static_cast<T>(c.at[1])}; }
};

}  // namespace ncg
