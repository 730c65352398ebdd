// Pass B that moves x in every second iteration only: 8 vectors an iteration on average instead of 9.
//
//   r -= alpha_r (hp + tau p),   p = r + beta p,   and where x moves:  x += deferred (p - r) + alpha_x p
//
//   reads   hp, r, p (and x)   12 (16) bytes an element (float32)
//   writes  r, p (and x)        8 (12) bytes
//   sums    r.r of the new r
//
// The step that x missed is rebuilt from p_{k-1} = (p_k - r_k) / beta: `deferred` is alpha_{k-1} / beta_{k-1}, 0 where
// x missed none. A tiny beta leaves no digits of p_{k-1} in p_k, so x then moves at once (moves_x in state.h). A solve
// that stops with a step outstanding is completed by `cg_finish`.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct CgUpdateDeferred : Operation {
  using Scalar = T;
  static constexpr int kVectors = 4;  // hp, x, r, p
  static constexpr int kReads = 4;
  static constexpr int kWritten = 3;
  static constexpr int kSums = 1;
  static constexpr bool kTakesTable = true;
  static constexpr bool kReversed = true;
  static constexpr int kOptional = 1;  // x

  T alpha_x, alpha_r, beta, tau, deferred;
  bool x_moves;

  NCG_HD bool uses_optional() const { return x_moves; }

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V hp = v[0];
    const V p = v[3];
    const V r = v[2] - alpha_r * (hp + tau * p);
    v[1] = v[1] + deferred * (p - v[2]) + alpha_x * p;
    v[2] = r;
    v[3] = r + beta * p;
    sums[0] += r * r;
  }

  static NCG_HD bool wanted(const CgState& s) { return takes_step(s); }
  static NCG_HD CgUpdateDeferred from_params(const Scalars& c) {
    return {{},
            static_cast<T>(c.at[0]),
            static_cast<T>(c.at[1]),
            static_cast<T>(c.at[2]),
            static_cast<T>(c.at[3]),
            static_cast<T>(c.at[4]),
            c.at[5] != 0.0};
  }
  static NCG_HD CgUpdateDeferred from_state(const CgState& s, const Scalars&) {
    return {{},
            static_cast<T>(s.alpha_x),
            static_cast<T>(s.alpha_r),
            static_cast<T>(s.beta),
            static_cast<T>(s.tau),
            static_cast<T>(s.deferred),
            moves_x(s)};
  }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars&) {
    s.deferred = moves_x(s) ? 0.0 : s.alpha_x / s.beta;
    after_update(s, sums[0], sums[0]);
    if (s.stop == as_double(StopReason::kBreakdown)) s.deferred = 0.0;  // r and p are lost: x stays the last finite one
  }
};

}  // namespace ncg
