// The passes of a plain solve.
#include "ncg/cuda/launch.cuh"
#include "ncg/cuda/launch.h"

NCG_OPERATIONS_OF_A_SOLVE(NCG_DEFINE_LAUNCH)
