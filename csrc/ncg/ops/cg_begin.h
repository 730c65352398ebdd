// The beginning of a solve from x = 0: r = p = scale b.
//
//   reads   b           4 bytes an element (float32)
//   writes  x, r, p    12 bytes
//   sums    r.r
//
// `magnitude` comes before it and chooses the scale.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct CgBegin : Operation {
  using Scalar = T;
  static constexpr int kVectors = 4;  // b, x, r, p
  static constexpr int kReads = 1;
  static constexpr int kWritten = 3;
  static constexpr int kSums = 1;

  T scale;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V r = scale * v[0];
    v[1] = V{};
    v[2] = r;
    v[3] = r;
    sums[0] += r * r;
  }

  static NCG_HD CgBegin from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0])}; }
  static NCG_HD CgBegin from_state(const CgState& s, const Scalars&) { return {{}, static_cast<T>(s.scale)}; }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars&) { begin(s, sums[0], sums[0], sums[0]); }
};

}  // namespace ncg
