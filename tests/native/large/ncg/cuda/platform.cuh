// The emulator's platform, except that of a grid only the blocks that the check asks for are run.
#pragma once

#include_next "ncg/cuda/platform.cuh"
#include "some_blocks.h"

#undef blockIdx
#undef gridDim
#undef NCG_LAUNCH
#define blockIdx (some_blocks::block())
#define gridDim (emulator::Index{some_blocks::grid})
#define NCG_LAUNCH(kernel, blocks, threads, stream, ...) \
  (some_blocks::launch((blocks), (threads), [&] { kernel(__VA_ARGS__); }), cudaSuccess)
