// The few places where a kernel touches the CUDA language beyond plain C++: a launch and shared memory. A build that
// runs the kernels elsewhere replaces this header alone.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>
#include <utility>

namespace ncg::cuda {

// Queues a kernel; returns what came of that. Unlike <<<>>> with cudaGetLastError, it neither reports nor clears an
// error that the caller has left behind, and leaves none of its own.
template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, cudaStream_t stream,
                          Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
  return status;
}

}  // namespace ncg::cuda

#define NCG_SHARED(type, name, count) __shared__ type name[count]
#define NCG_LAUNCH(kernel, blocks, threads, stream, ...) \
  ncg::cuda::launch_kernel((kernel), (blocks), (threads), (stream), __VA_ARGS__)
