// Pass A of an iteration: the curvature along p of the damped matrix, q = hp + tau p.
//
//   reads   hp, p      8 bytes an element (float32)
//   writes  -
//   sums    p.q, q.q, p.p
//
// q lives in registers only: the damped product is never written. q.q buys the prediction of the next r.r, p.p the
// scale-free test for negative curvature. In a solve q is multiplied by q_scale first, where its squares would leave
// the range of the vectors' type.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct DampedCurvature : Operation {
  using Scalar = T;
  static constexpr int kVectors = 2;  // hp, p
  static constexpr int kReads = 2;
  static constexpr int kWritten = 0;
  static constexpr int kSums = 3;
  static constexpr bool kTakesTable = true;

  T tau, q_scale;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V hp = v[0];
    const V p = v[1];
    const V q = q_scale * (hp + tau * p);
    sums[0] += p * q;
    sums[1] += q * q;
    sums[2] += p * p;
  }

  static NCG_HD DampedCurvature from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0]), T{1}}; }
  static NCG_HD DampedCurvature from_state(const CgState& s, const Scalars&) {
    return {{}, static_cast<T>(s.tau), static_cast<T>(s.q_scale)};
  }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars& c) {
    after_curvature(s, sums[0], sums[1], sums[1], sums[2], static_cast<double>(c.n));
  }
};

}  // namespace ncg
