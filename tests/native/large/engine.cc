// The CUDA engine with the two passes of a solve alone, and unpack: the other operations share their indices.
#include "ncg/operations.h"

#undef NCG_OPERATIONS_OF_A_SOLVE
#undef NCG_OTHER_OPERATIONS
#define NCG_OPERATIONS_OF_A_SOLVE(X) X(damped_curvature, DampedCurvature) X(cg_update, CgUpdate)
#define NCG_OTHER_OPERATIONS(X)

#include "ncg/cuda/launch.cu"
#include "ncg/cuda/solve.cu"
