// The GPU's yardsticks: one plain kernel with 128-bit accesses, in several launch shapes of which a benchmark takes the
// fastest.
#include <cuda_runtime.h>

#include "ncg/cuda/platform.cuh"
#include "ncg/yardsticks/shapes.h"

namespace ncg::yardsticks {
namespace {

struct Operands {
  float* at[kMaxVectors];
};

__device__ __forceinline__ float total(const float4& v) { return (v.x + v.y) + (v.z + v.w); }

// A block takes tiles of blockDim.x * kQuads quads; all loads of a tile are independent of each other.
template <int R, int W, int K, int kQuads>
__global__ void stream(const Operands operands, const std::int64_t n, const float scale, double* sum) {
  const std::int64_t quads = n / 4;
  const std::int64_t tile = static_cast<std::int64_t>(blockDim.x) * kQuads;
  float acc = 0.0f;
  for (std::int64_t base = blockIdx.x * tile; base < quads; base += gridDim.x * tile) {
    float4 v[kQuads][R];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const std::int64_t i = base + q * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
      if (i < quads) {
#pragma unroll
        for (int k = 0; k < R; ++k) v[q][k] = reinterpret_cast<const float4*>(operands.at[k])[i];
      }
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const std::int64_t i = base + q * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
      if (i < quads) {
#pragma unroll
        for (int k = 0; k < R; ++k) acc += total(v[q][k]);
#pragma unroll
        for (int k = K - W; k < K; ++k) {
          const float4 a = v[q][k < R ? k : 0];
          reinterpret_cast<float4*>(operands.at[k])[i] =
              make_float4(scale * a.x, scale * a.y, scale * a.z, scale * a.w);
        }
      }
    }
  }
  if (blockIdx.x == 0) {  // the last elements that fill no quad
    const std::int64_t i = quads * 4 + threadIdx.x;
    if (i < n) {
      const float first = operands.at[0][i];
#pragma unroll
      for (int k = 0; k < R; ++k) acc += operands.at[k][i];
#pragma unroll
      for (int k = K - W; k < K; ++k) operands.at[k][i] = scale * (k < R ? operands.at[k][i] : first);
    }
  }
  __shared__ double parts[32];
  double wide = acc;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) wide += __shfl_down_sync(0xffffffffu, wide, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = wide;
  __syncthreads();
  if (threadIdx.x == 0) {
    double all = 0.0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) all += parts[w];
    atomicAdd(sum, all);
  }
}

// Launch shapes: 3 tiles x 3 block sizes x (a block per tile, or as many blocks as the GPU holds at a time).
constexpr int kShapes = 18;
constexpr int kThreads[3] = {256, 512, 1024};

template <int R, int W, int K, int kQuads>
cudaError_t launch(const Stream& call, int threads, bool resident) {
  const std::int64_t tile = static_cast<std::int64_t>(threads) * kQuads * 4;
  std::int64_t blocks = (call.n + tile - 1) / tile;
  if (resident) {
    int device = 0, processors = 0, per_processor = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) {
      status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    }
    if (status == cudaSuccess) {
      status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, stream<R, W, K, kQuads>, threads, 0);
    }
    if (status != cudaSuccess) return status;
    const std::int64_t held = static_cast<std::int64_t>(processors) * per_processor;
    if (blocks > held) blocks = held;
  }
  if (blocks < 1) blocks = 1;
  Operands operands{};
  for (int k = 0; k < K; ++k) operands.at[k] = call.operand[k];
  return NCG_LAUNCH((stream<R, W, K, kQuads>), static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                    static_cast<cudaStream_t>(call.stream), operands, call.n, call.scale, call.sum);
}

template <int R, int W, int K>
cudaError_t launch_variant(const Stream& call) {
  const int threads = kThreads[call.variant / 2 % 3];
  const bool resident = call.variant % 2 == 1;
  switch (call.variant / 6) {
    case 0:
      return launch<R, W, K, 1>(call, threads, resident);
    case 1:
      return launch<R, W, K, 2>(call, threads, resident);
    default:
      return launch<R, W, K, 4>(call, threads, resident);
  }
}

}  // namespace
}  // namespace ncg::yardsticks

extern "C" const char* ncg_cuda_stream(const ncg::yardsticks::Stream* call) {
  using namespace ncg::yardsticks;
  if (call->variant < 0 || call->variant >= kShapes) return "no such variant of the stream";
#define NCG_STREAM(R, W, K)                                              \
  if (call->reads == R && call->writes == W && call->vectors == K) {     \
    const cudaError_t status = launch_variant<R, W, K>(*call);           \
    return status == cudaSuccess ? nullptr : cudaGetErrorString(status); \
  }
  NCG_STREAM_SHAPES(NCG_STREAM)
#undef NCG_STREAM
  return "no stream of this shape; add it to csrc/ncg/yardsticks/shapes.h";
}
