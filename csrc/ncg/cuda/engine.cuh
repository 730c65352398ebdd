// The CUDA engine: runs any operation of operations.h over flat vectors or a table, in one launch.
//
// A block takes a chunk at a time: 128-bit loads, all of a thread's loads of a vector independent of each other; a
// float32 sum stays in float32 for the 16 elements of a thread and 16 threads of a half-warp (one run), and goes on in
// float64. The block that draws the last ticket adds the partial sums of all chunks, in a fixed order, and hands them
// to the driver. No host synchronisation, no atomics on values: the same bits from run to run.
#pragma once

#include <cstdint>

#include "ncg/chunk.h"
#include "ncg/cuda/platform.cuh"
#include "ncg/driver.h"
#include "ncg/vectors.h"

namespace ncg::cuda {

constexpr int kThreads = 256;
constexpr int kPerThread = static_cast<int>(kChunk / kThreads);  // elements of each vector
constexpr int kWarps = kThreads / 32;
static_assert(kPerThread * 16 == kRun, "a half-warp adds one run in float32");

// Kernel arguments are limited to 4 KB: up to 161 tensors (ResNet-50) travel in them, a longer table in device memory.
constexpr int kInlineSegments = 161;
struct InlineTable {
  Segment segments[kInlineSegments];
};
// Where operand 0 stands: one array, or a table that travels in the kernel's arguments or in device memory.
enum class Place { kFlat, kInlineTable, kDeviceTable };
struct NoTable {};

template <class T>
struct alignas(16) Quad {
  static constexpr int kWidth = 16 / sizeof(T);
  T at[kWidth];
};

// kWidth elements at index i of the table, zeros where it has padding. `s` is a segment at or before the right one.
template <class T>
__device__ __forceinline__ Quad<T> load_from_table(const Segment* segments, std::int64_t count, std::int64_t& s,
                                                   std::int64_t i) {
  Quad<T> quad{};
  while (s + 1 < count && segments[s + 1].offset <= i) ++s;
  if (s < 0) return quad;
  // offsets are multiples of kLanes, so a quad never starts in one segment and ends in the next
  const std::int64_t at = i - segments[s].offset;
  const std::int64_t left = segments[s].length - at;
  const T* data = static_cast<const T*>(segments[s].data) + at;
  if (left >= Quad<T>::kWidth && reinterpret_cast<std::uintptr_t>(data) % sizeof(Quad<T>) == 0) {
    quad = *reinterpret_cast<const Quad<T>*>(data);
  } else {
#pragma unroll
    for (int j = 0; j < Quad<T>::kWidth; ++j) {
      if (j < left) quad.at[j] = data[j];
    }
  }
  return quad;
}

// The sum of `value` over the warp, in lane 0: a half-warp in T (the end of a run), the halves in float64.
template <class T>
__device__ __forceinline__ double warp_sum(T value) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset, 16);
  double wide = static_cast<double>(value);
  wide += __shfl_down_sync(0xffffffffu, wide, 16);
  return wide;
}

__device__ __forceinline__ double warp_sum_wide(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

// One chunk of the vectors: adds this thread's terms to `sums`.
template <class Op, class T, bool kTable, bool kFull>
__device__ __forceinline__ void chunk_pass(const Op& op, const Vectors<T, Op::kVectors>& vectors,
                                           const Segment* segments, std::int64_t count, std::int64_t s,
                                           std::int64_t chunk_begin, std::int64_t n, T* sums) {
  constexpr int W = Quad<T>::kWidth;
  constexpr int K = Op::kVectors;
  constexpr int kFirstWritten = K - Op::kWritten;
  // Quads of each vector in flight together: 8 loads of 16 bytes a thread hide the latency, more would spill registers.
  constexpr int kQuads = K > 2 || kTable ? 2 : 4;
  static_assert(kPerThread % (kQuads * W) == 0, "a chunk is whole batches");
#pragma unroll 1
  for (std::int64_t batch = chunk_begin + threadIdx.x * W; batch < chunk_begin + kChunk;
       batch += kQuads * kThreads * W) {
    Quad<T> quad[kQuads][K];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const std::int64_t i = batch + q * (kThreads * W);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (kTable && k == 0) {
          quad[q][k] = (kFull || i < n) ? load_from_table<T>(segments, count, s, i) : Quad<T>{};
        } else if (kFull || i + W <= n) {
          quad[q][k] = *reinterpret_cast<const Quad<T>*>(vectors.flat[k] + i);
        } else {
#pragma unroll
          for (int j = 0; j < W; ++j) quad[q][k].at[j] = i + j < n ? vectors.flat[k][i + j] : T(0);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const std::int64_t i = batch + q * (kThreads * W);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        T v[K];
#pragma unroll
        for (int k = 0; k < K; ++k) v[k] = quad[q][k].at[j];
        op(v, sums);
#pragma unroll
        for (int k = kFirstWritten; k < K; ++k) quad[q][k].at[j] = v[k];
      }
#pragma unroll
      for (int k = kFirstWritten; k < K; ++k) {
        if (kFull || i + W <= n) {
          *reinterpret_cast<Quad<T>*>(vectors.flat[k] + i) = quad[q][k];
        } else {
#pragma unroll
          for (int j = 0; j < W; ++j) {
            if (i + j < n) vectors.flat[k][i + j] = quad[q][k].at[j];
          }
        }
      }
    }
  }
}

template <class Op, class T, class Driver, Place kPlace>
__global__ void __launch_bounds__(kThreads)
    pass(const Vectors<T, Op::kVectors> vectors, const std::int64_t n, const Driver driver,
         const __grid_constant__ std::conditional_t<kPlace == Place::kInlineTable, InlineTable, NoTable> inline_table,
         double* partials, unsigned* ticket) {
  constexpr int S = Op::kSums;
  constexpr bool kTable = kPlace != Place::kFlat;
  NCG_SHARED(double, warp_sums, kWarps* S);
  NCG_SHARED(unsigned, drawn, 1);
  Op op{};
  if (!driver.begin(op)) return;  // the same answer in every thread: nobody writes the state before the last ticket

  const Segment* segments = vectors.table.segments;
  const std::int64_t count = vectors.table.count;
  if constexpr (kPlace == Place::kInlineTable) segments = inline_table.segments;

  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const std::int64_t chunks = chunk_count(n);
  for (std::int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const std::int64_t begin = c * kChunk;
    const std::int64_t s = kTable ? find_segment(segments, count, begin) : 0;
    T sums[S] = {};
    if (n - begin >= kChunk) {
      chunk_pass<Op, T, kTable, true>(op, vectors, segments, count, s, begin, n, sums);
    } else {
      chunk_pass<Op, T, kTable, false>(op, vectors, segments, count, s, begin, n, sums);
    }
#pragma unroll
    for (int m = 0; m < S; ++m) {
      const double sum = warp_sum(sums[m]);
      if (lane == 0) warp_sums[m * kWarps + warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x < S) {
      double sum = 0.0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += warp_sums[threadIdx.x * kWarps + w];
      partials[c * S + threadIdx.x] = sum;
    }
    __syncthreads();  // before the next chunk overwrites warp_sums
  }

  // the last block to get here adds the partial sums
  __threadfence();
  __syncthreads();
  // counts to the number of blocks and starts again at zero, ready for the next launch on this workspace
  if (threadIdx.x == 0) drawn[0] = atomicInc(ticket, gridDim.x - 1);
  __syncthreads();
  if (drawn[0] != gridDim.x - 1) return;
  __threadfence();
  double totals[S] = {};
  for (std::int64_t c = threadIdx.x; c < chunks; c += kThreads) {
#pragma unroll
    for (int m = 0; m < S; ++m) totals[m] += __ldcg(partials + c * S + m);
  }
#pragma unroll
  for (int m = 0; m < S; ++m) {
    const double sum = warp_sum_wide(totals[m]);
    if (lane == 0) warp_sums[m * kWarps + warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double sums[S];
#pragma unroll
    for (int m = 0; m < S; ++m) {
      sums[m] = 0.0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sums[m] += warp_sums[m * kWarps + w];
    }
    driver.finish(sums);
  }
}

}  // namespace ncg::cuda
