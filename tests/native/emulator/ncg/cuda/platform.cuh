// Stands in for csrc/ncg/cuda/platform.cuh: the CUDA engine's sources, compiled as C++ and run by the emulator.
#pragma once

#include <type_traits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __CUDACC_VER_MAJOR__ 0
#define __CUDACC_VER_MINOR__ 0

#define threadIdx (emulator::current_thread().thread)
#define blockIdx (emulator::current_thread().block)
#define gridDim (emulator::grid_size())

// An exact-size heap block per block and site, filled with 0xff: overruns and reads before writes show.
#define NCG_SHARED(type, name, count) \
  static const char name##_site = 0;  \
  type* const name = static_cast<type*>(emulator::shared(&name##_site, sizeof(type) * (count)))
#define NCG_LAUNCH(kernel, blocks, threads, stream, ...) \
  (emulator::launch((blocks), (threads), [&] { kernel(__VA_ARGS__); }), cudaSuccess)

inline void __syncthreads() { emulator::barrier(); }
inline void __threadfence() { emulator::fence(); }
inline unsigned atomicInc(unsigned* at, unsigned limit) {
  unsigned before = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &before, before >= limit ? 0 : before + 1, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  emulator::yield();
  return before;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int offset, int width = 32) {
  emulator::shuffle_down(mask, &value, sizeof(T), offset, width);
  return value;
}

using cudaStream_t = void*;
using cudaError_t = int;
constexpr int cudaSuccess = 0;
constexpr int cudaMemcpyHostToDevice = 1;
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return 0;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return 0;
}
