// The end of a solve: the step that x still missed, and x in the units of the caller.
//
//   x = (x + deferred (p - r)) inverse_scale
//
//   reads   r, p, x    12 bytes an element (float32)
//   writes  x           4 bytes
//   sums    -
//
// Does nothing, and reads nothing, where no step is outstanding and the solve was not scaled: the usual case.
#pragma once

#include "ncg/operation.h"

namespace ncg {

template <class T>
struct CgFinish : Operation {
  using Scalar = T;
  static constexpr int kVectors = 3;  // r, p, x
  static constexpr int kReads = 3;
  static constexpr int kWritten = 1;
  static constexpr int kSums = 0;

  T deferred, inverse_scale;

  template <class V>
  NCG_HD void operator()(V* v, V*) const {
    v[2] = (v[2] + deferred * (v[1] - v[0])) * inverse_scale;
  }

  static NCG_HD bool wanted(const CgState& s) { return s.deferred != 0.0 || s.scale != 1.0 || s.stop == 0.0; }
  static NCG_HD CgFinish from_params(const Scalars& c) {
    return {{}, static_cast<T>(c.at[0]), static_cast<T>(c.at[1])};
  }
  static NCG_HD CgFinish from_state(const CgState& s, const Scalars&) {
    return {{}, static_cast<T>(s.deferred), static_cast<T>(1.0 / s.scale)};
  }
  static NCG_HD void finish(CgState& s, const double*, const Scalars&) { finished(s); }
};

}  // namespace ncg
