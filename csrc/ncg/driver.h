// Where an operation gets its scalars and where its sums go.
#pragma once

#include "ncg/state.h"

namespace ncg {

// Called on its own: scalars by value, sums to `out`.
template <class Op>
struct Direct {
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
  CgState* state;

  NCG_HD bool begin(Op& o) const {
    if (state->stop != 0.0) return false;
    o = Op::from_state(*state);
    return true;
  }
  NCG_HD void finish(const double* sums) const { Op::finish(*state, sums); }
};

}  // namespace ncg
