// The list of operations: a new one is a header in ops/ and a line here, and both engines, the bindings and the
// launchers have it.
#pragma once

#include "ncg/ops/cg_update.h"
#include "ncg/ops/damped_curvature.h"
#include "ncg/ops/dots.h"
#include "ncg/ops/weighted_step.h"

// X(name in Python, functor, can run inside a solve: has from_state and finish)
#define NCG_OPERATIONS(X)                    \
  X(damped_curvature, DampedCurvature, true) \
  X(cg_update, CgUpdate, true)               \
  X(weighted_step, WeightedStep, false)      \
  X(dots, Dots, true)
