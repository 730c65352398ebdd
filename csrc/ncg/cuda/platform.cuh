// The few places where a kernel touches the CUDA language beyond plain C++: a launch and shared memory. A build that
// runs the kernels elsewhere replaces this header alone.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#define NCG_SHARED(type, name, count) __shared__ type name[count]
#define NCG_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<(blocks), (threads), 0, (stream)>>>(__VA_ARGS__)
