// One more micro-batch of a product: acc += weight hv.
//
//   reads   hv, acc    8 bytes an element (float32)
//   writes  acc        4 bytes
//   sums    -
//
// The first part of a sum is written by `pack` (2 vectors), the last one joins pass A: `accumulate_curvature`.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct Accumulate : Operation {
  using Scalar = T;
  static constexpr int kVectors = 2;  // hv, acc
  static constexpr int kReads = 2;
  static constexpr int kWritten = 1;
  static constexpr int kSums = 0;
  static constexpr bool kTakesTable = true;
  static constexpr bool kInSolve = false;

  T weight;

  template <class V>
  NCG_HD void operator()(V* v, V*) const {
    v[1] = v[1] + weight * v[0];
  }

  static NCG_HD Accumulate from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0])}; }
};

}  // namespace ncg
