// Where an operation gets its scalars and where its sums go.
#pragma once

#include "ncg/operation.h"

namespace ncg {

// Called on its own: scalars by value, sums to `out`.
template <class Op>
struct Direct {
  static constexpr bool kHasState = false;
  Op op;
  double* out;

  NCG_HD bool begin(Op& o) const {
    o = op;
    return true;
  }
  NCG_HD void finish(const double* sums) const {
    for (int m = 0; m < Op::kSums; ++m) out[m] = sums[m];
  }
};

// As a pass of a solve: scalars from the state block, sums into its transition; does nothing once the solve stopped.
template <class Op>
struct InSolve {
  static constexpr bool kHasState = true;
  CgState* state;
  Scalars scalars;

  NCG_HD bool begin(Op& o) const {
    if (!Op::wanted(*state)) return false;
    o = Op::from_state(*state, scalars);
    return true;
  }
  NCG_HD void finish(const double* sums) const { Op::finish(*state, sums, scalars); }
};

}  // namespace ncg
