// The CUDA engine with those operations alone that the TensorFlow ops call: the others cost half a minute to compile.
#include "ncg/operations.h"

#undef NCG_OPERATIONS_OF_A_SOLVE
#undef NCG_OTHER_OPERATIONS
#define NCG_OPERATIONS_OF_A_SOLVE(X) X(damped_curvature, DampedCurvature) X(cg_update_deferred, CgUpdateDeferred)
#define NCG_OTHER_OPERATIONS(X) \
  X(cg_begin, CgBegin) X(cg_finish, CgFinish) X(dots, Dots) X(magnitude, Magnitude) X(pack, Pack)

#include "ncg/cuda/launch.cu"
#include "ncg/cuda/solve.cu"
