// The beginning of a solve from a given x0. Two passes, with a product H x in between:
//
//   x = p = scale x0,  r = scale b          CgBeginFrom
//   r = p = r - (H x + tau x)               CgUpdate, called on its own (alpha_x = 0, alpha_r = 1, beta = 0)
//   r.p, r.r, b.b                           CgRestart: here p = r, or M^-1 r with a preconditioner
#pragma once

#include "ncg/operation.h"

namespace ncg {

//   reads   b, x0       8 bytes an element (float32)
//   writes  x, r, p    12 bytes
//   sums    -
template <class T>
struct CgBeginFrom : Operation {
  using Scalar = T;
  static constexpr int kVectors = 5;  // b, x0, x, r, p
  static constexpr int kReads = 2;
  static constexpr int kWritten = 3;
  static constexpr int kSums = 0;

  T scale, scale_x;

  template <class V>
  NCG_HD void operator()(V* v, V*) const {
    const V x = scale_x * v[1];
    v[2] = x;
    v[3] = scale * v[0];
    v[4] = x;
  }

  static NCG_HD CgBeginFrom from_params(const Scalars& c) {
    return {{}, static_cast<T>(c.at[0]), static_cast<T>(c.at[1])};
  }
  // For b = 0 the solution is 0, wherever the start. Until CgRestart, bb holds the sum of |b|.
  static NCG_HD CgBeginFrom from_state(const CgState& s, const Scalars&) {
    return {{}, static_cast<T>(s.scale), static_cast<T>(s.bb == 0.0 ? 0.0 : s.scale)};
  }
  static NCG_HD void finish(CgState&, const double*, const Scalars&) {}
};

//   reads   b, r, p    12 bytes an element (float32)
//   writes  -
//   sums    r.p, r.r, (scale b).(scale b)
template <class T>
struct CgRestart : Operation {
  using Scalar = T;
  static constexpr int kVectors = 3;  // b, r, p
  static constexpr int kReads = 3;
  static constexpr int kWritten = 0;
  static constexpr int kSums = 3;

  T scale;

  template <class V>
  NCG_HD void operator()(V* v, V* sums) const {
    const V b = scale * v[0];
    sums[0] += v[1] * v[2];
    sums[1] += v[1] * v[1];
    sums[2] += b * b;
  }

  static NCG_HD CgRestart from_params(const Scalars& c) { return {{}, static_cast<T>(c.at[0])}; }
  static NCG_HD CgRestart from_state(const CgState& s, const Scalars&) { return {{}, static_cast<T>(s.scale)}; }
  static NCG_HD void finish(CgState& s, const double* sums, const Scalars&) { begin(s, sums[0], sums[1], sums[2]); }
};

}  // namespace ncg
