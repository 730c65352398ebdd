// Pass B of an iteration: x, r and p move together, because beta is known before r is.
//
//   x += alpha_x p,   r -= alpha_r (hp + tau p),   p = r + beta p
//
//   reads   hp, x, r, p     16 bytes an element (float32)
//   writes  x, r, p         12 bytes
//   sums    r.r of the new r
//
// With pass A an iteration moves 9 vectors: 36 bytes per float32 weight. alpha_x and alpha_r are equal in a
// solve; the residual of a given x is alpha_x = 0, alpha_r = 1, beta = 0, p = x.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct CgUpdate : Operation {
  using Scalar = T;
  static constexpr int kVectors = 4;  // hp, x, r, p
  static constexpr int kReads = 4;
  static constexpr int kWritten = 3;
  static constexpr int kSums = 1;
  static constexpr bool kTakesTable = true;
  static constexpr bool kReversed = true;  // the end of hp and p is what pass A read last

  T alpha_x, alpha_r, beta, tau;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V hp = v[0];
    const V p = v[3];
    const V r = v[2] - alpha_r * (hp + tau * p);
    v[1] = v[1] + alpha_x * p;
    v[2] = r;
    v[3] = r + beta * p;
    sums[0] += r * r;
  }

  static NCG_HD bool wanted(const CgState& s) { return takes_step(s); }
  static NCG_HD CgUpdate from_params(const Scalars& c) {
    return {{}, static_cast<T>(c.at[0]), static_cast<T>(c.at[1]), static_cast<T>(c.at[2]), static_cast<T>(c.at[3])};
  }
  static NCG_HD CgUpdate from_state(const CgState& s, const Scalars&) {
    return {{}, static_cast<T>(s.alpha_x), static_cast<T>(s.alpha_r), static_cast<T>(s.beta), static_cast<T>(s.tau)};
  }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars&) { after_update(s, sums[0], sums[0]); }
};

}  // namespace ncg
