// The emulator's platform, except that nothing runs at once: launches and copies go to streams, which run them later.
#pragma once

#include_next "ncg/cuda/platform.cuh"
#include "queue.h"

// The arguments are taken now, as CUDA takes them: what they were made from may be gone when the kernel runs.
#undef NCG_LAUNCH
#define NCG_LAUNCH(kernel, blocks, threads, stream, ...) \
  emulator::queue_launch((blocks), (threads), (stream), [](const auto&... given) { kernel(given...); }, __VA_ARGS__)

#define cudaMemcpyAsync(to, from, bytes, kind, stream) emulator::queue_copy((to), (from), (bytes), (stream))
#define cudaGetErrorString(error) emulator::error_text(error)
