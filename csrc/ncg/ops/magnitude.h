// The sum of |a|; in a solve, its very first pass, over b: fills in the state block and chooses the scale.
//
//   reads   a          4 bytes an element (float32)
//   writes  -
//   sums    |a|
//
// The mean of |b| is what a scale can be chosen from without overflow: squares of float32 numbers overflow at 1e19 and
// vanish near 1e-23.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct Magnitude : Operation {
  using Scalar = T;
  static constexpr int kVectors = 1;  // a
  static constexpr int kReads = 1;
  static constexpr int kWritten = 0;
  static constexpr int kSums = 1;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    sums[0] += absolute(v[0]);
  }

  static NCG_HD bool wanted(const CgState&) { return true; }
  static NCG_HD Magnitude from_params(const Scalars&) { return {}; }
  static NCG_HD Magnitude from_state(const CgState&, const Scalars&) { return {}; }
  // Scalars: tau, cg_tol, max_iter.
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars& c) {
    s = CgState{};
    s.tau = c.at[0];
    s.cg_tol = c.at[1];
    s.max_iter = c.at[2];
    s.eps = sizeof(T) == 4 ? FLT_EPSILON : DBL_EPSILON;
    s.largest = sizeof(T) == 4 ? FLT_MAX : DBL_MAX;
    s.q_scale = 1.0;
    s.bb = sums[0];
    s.scale = choose_scale(sums[0] / static_cast<double>(c.n), s.largest);
  }

 private:
  template <class V>
  static NCG_HD V absolute(V a) {
    return a < V{} ? -a : a;
  }
};

}  // namespace ncg
