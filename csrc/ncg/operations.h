// The list of operations: a new one is a header in ops/ and a line here, and both engines, the bindings and the
// launchers have it.
#pragma once

#include "ncg/ops/accumulate.h"
#include "ncg/ops/accumulate_curvature.h"
#include "ncg/ops/cg_begin.h"
#include "ncg/ops/cg_begin_from.h"
#include "ncg/ops/cg_finish.h"
#include "ncg/ops/cg_update.h"
#include "ncg/ops/cg_update_deferred.h"
#include "ncg/ops/damped_curvature.h"
#include "ncg/ops/dots.h"
#include "ncg/ops/magnitude.h"
#include "ncg/ops/pack.h"
#include "ncg/ops/preconditioned.h"
#include "ncg/ops/weighted_step.h"

// X(name in Python, functor), in groups that compile apart from one another.
#define NCG_OPERATIONS_OF_A_SOLVE(X)   \
  X(damped_curvature, DampedCurvature) \
  X(cg_update, CgUpdate)               \
  X(cg_update_deferred, CgUpdateDeferred)

#define NCG_PRECONDITIONED_OPERATIONS(X)               \
  X(preconditioned_begin, PreconditionedBegin)         \
  X(preconditioned_curvature, PreconditionedCurvature) \
  X(preconditioned_update, PreconditionedUpdate)

#define NCG_OTHER_OPERATIONS(X)                \
  X(accumulate, Accumulate)                    \
  X(accumulate_curvature, AccumulateCurvature) \
  X(cg_begin, CgBegin)                         \
  X(cg_begin_from, CgBeginFrom)                \
  X(cg_finish, CgFinish)                       \
  X(cg_restart, CgRestart)                     \
  X(dots, Dots)                                \
  X(magnitude, Magnitude)                      \
  X(pack, Pack)                                \
  X(weighted_step, WeightedStep)

#define NCG_OPERATIONS(X)          \
  NCG_OPERATIONS_OF_A_SOLVE(X)     \
  NCG_PRECONDITIONED_OPERATIONS(X) \
  NCG_OTHER_OPERATIONS(X)
