// Pass A on a product that comes in micro-batches: the last part joins the sum, acc += weight hv, and the curvature of
// the damped matrix is taken in the same pass, with q = acc + tau p.
//
//   reads   hv, p, acc   12 bytes an element (float32)
//   writes  acc           4 bytes
//   sums    p.q, q.q, p.p
//
// 4 vectors, where `accumulate` followed by `damped_curvature` moves 5. Pass B then takes acc as its product.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct AccumulateCurvature : Operation {
  using Scalar = T;
  static constexpr int kVectors = 3;  // hv, p, acc
  static constexpr int kReads = 3;
  static constexpr int kWritten = 1;
  static constexpr int kSums = 3;
  static constexpr bool kTakesTable = true;

  T weight, tau, q_scale;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V p = v[1];
    const V acc = v[2] + weight * v[0];
    v[2] = acc;
    const V q = q_scale * (acc + tau * p);
    sums[0] += p * q;
    sums[1] += q * q;
    sums[2] += p * p;
  }

  static NCG_HD AccumulateCurvature from_params(const Scalars& c) {
    return {{}, static_cast<T>(c.at[0]), static_cast<T>(c.at[1]), T{1}};
  }
  static NCG_HD AccumulateCurvature from_state(const CgState& s, const Scalars& c) {
    return {{}, static_cast<T>(c.at[0]), static_cast<T>(s.tau), static_cast<T>(s.q_scale)};
  }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars& c) {
    after_curvature(s, sums[0], sums[1], sums[1], sums[2], static_cast<double>(c.n));
  }
};

}  // namespace ncg
