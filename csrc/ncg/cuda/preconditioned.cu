// The passes of a preconditioned solve.
#include "ncg/cuda/launch.cuh"
#include "ncg/cuda/launch.h"

NCG_PRECONDITIONED_OPERATIONS(NCG_DEFINE_LAUNCH)
