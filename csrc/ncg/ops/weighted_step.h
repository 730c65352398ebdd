// The step of the weights, with the sums of the feasibility check: w += lr d.
//
//   reads   d, g, w    12 bytes an element (float32)
//   writes  w           4 bytes
//   sums    g.d, g.g, d.d
//
// The direction d is a descent direction if g.d <= -eps |g| |d|. lr = 0 gives the sums and leaves w as it is.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct WeightedStep : Operation {
  using Scalar = T;
  static constexpr int kVectors = 3;  // d, g, w
  static constexpr int kReads = 3;
  static constexpr int kWritten = 1;
  static constexpr int kSums = 3;
  static constexpr bool kInSolve = false;

  T lr;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V d = v[0];
    const V g = v[1];
    v[2] = v[2] + lr * d;
    sums[0] += g * d;
    sums[1] += g * g;
    sums[2] += d * d;
  }

  static NCG_HD WeightedStep from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0])}; }
};

}  // namespace ncg
