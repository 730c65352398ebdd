// The passes of CG with a diagonal preconditioner M, whose inverse comes as the vector m: 11 vectors an iteration. The
// preconditioned residual z = m r is never written.
#pragma once

#include "ncg/operation.h"

namespace ncg {

// The beginning: r = scale b, p = z, x = 0.
//
//   reads   b, m       8 bytes an element (float32)
//   writes  x, r, p   12 bytes
//   sums    r.z, r.r
template <class T>
struct PreconditionedBegin : Operation {
  using Scalar = T;
  static constexpr int kVectors = 5;  // b, m, x, r, p
  static constexpr int kReads = 2;
  static constexpr int kWritten = 3;
  static constexpr int kSums = 2;

  T scale;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V r = scale * v[0];
    const V z = v[1] * r;
    v[2] = V{};
    v[3] = r;
    v[4] = z;
    sums[0] += r * z;
    sums[1] += r * r;
  }

  static NCG_HD PreconditionedBegin from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0])}; }
  static NCG_HD PreconditionedBegin from_state(const CgState& s, const Scalars&) {
    return {{}, static_cast<T>(s.scale)};
  }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars&) { begin(s, sums[0], sums[1], sums[1]); }
};

// Pass A, q = hp + tau p.
//
//   reads   hp, p, m   12 bytes an element (float32)
//   writes  -
//   sums    p.q, q.m q, q.q, p.p
//
// q.m q predicts the next r.z as alpha^2 q.m q - rz; q.q and p.p are for the test for negative curvature.
template <class T>
struct PreconditionedCurvature : Operation {
  using Scalar = T;
  static constexpr int kVectors = 3;  // hp, p, m
  static constexpr int kReads = 3;
  static constexpr int kWritten = 0;
  static constexpr int kSums = 4;
  static constexpr bool kTakesTable = true;

  T tau, q_scale;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V p = v[1];
    const V q = q_scale * (v[0] + tau * p);
    sums[0] += p * q;
    sums[1] += q * (v[2] * q);
    sums[2] += q * q;
    sums[3] += p * p;
  }

  static NCG_HD PreconditionedCurvature from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0]), T{1}}; }
  static NCG_HD PreconditionedCurvature from_state(const CgState& s, const Scalars&) {
    return {{}, static_cast<T>(s.tau), static_cast<T>(s.q_scale)};
  }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars& c) {
    after_curvature(s, sums[0], sums[1], sums[2], sums[3], static_cast<double>(c.n));
  }
};

// Pass B: x += alpha_x p, r -= alpha_r (hp + tau p), p = m r + beta p.
//
//   reads   hp, m, x, r, p   20 bytes an element (float32)
//   writes  x, r, p          12 bytes
//   sums    r.z, r.r of the new r
template <class T>
struct PreconditionedUpdate : Operation {
  using Scalar = T;
  static constexpr int kVectors = 5;  // hp, m, x, r, p
  static constexpr int kReads = 5;
  static constexpr int kWritten = 3;
  static constexpr int kSums = 2;
  static constexpr bool kTakesTable = true;
  static constexpr bool kReversed = true;

  T alpha_x, alpha_r, beta, tau;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V p = v[4];
    const V r = v[3] - alpha_r * (v[0] + tau * p);
    const V z = v[1] * r;
    v[2] = v[2] + alpha_x * p;
    v[3] = r;
    v[4] = z + beta * p;
    sums[0] += r * z;
    sums[1] += r * r;
  }

  static NCG_HD bool wanted(const CgState& s) { return takes_step(s); }
  static NCG_HD PreconditionedUpdate from_params(const Scalars& c) {
    return {{}, static_cast<T>(c.at[0]), static_cast<T>(c.at[1]), static_cast<T>(c.at[2]), static_cast<T>(c.at[3])};
  }
  static NCG_HD PreconditionedUpdate from_state(const CgState& s, const Scalars&) {
    return {{}, static_cast<T>(s.alpha_x), static_cast<T>(s.alpha_r), static_cast<T>(s.beta), static_cast<T>(s.tau)};
  }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars&) { after_update(s, sums[0], sums[1]); }
};

}  // namespace ncg
