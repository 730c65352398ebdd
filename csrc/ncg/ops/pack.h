// Tensors into one flat vector, zeros between them: flat = factor (scale tensors). The buffer of an allreduce, and the
// first part of a product that comes in micro-batches.
//
//   reads   tensors    4 bytes an element (float32)
//   writes  flat       4 bytes
//   sums    -
//
// Two factors, because their product may be too small or too large for the vectors' type where the result is not.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct Pack : Operation {
  using Scalar = T;
  static constexpr int kVectors = 2;  // tensors, flat
  static constexpr int kReads = 1;
  static constexpr int kWritten = 1;
  static constexpr int kSums = 0;
  static constexpr bool kTakesTable = true;
  static constexpr bool kInSolve = false;

  T scale, factor;

  template <class V>
  NCG_HD void operator()(V* v, V*) const {
    v[1] = factor * (scale * v[0]);
  }

  static NCG_HD Pack from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0]), static_cast<T>(c.at[1])}; }
};

}  // namespace ncg
