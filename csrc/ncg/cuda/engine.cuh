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
#include "ncg/cuda/table.cuh"
#include "ncg/driver.h"
#include "ncg/vectors.h"

namespace ncg::cuda {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 3;  // 80 registers a thread: the loads in flight of 768 threads are several times enough
constexpr int kPerThread = static_cast<int>(kChunk / kThreads);  // elements of each vector
constexpr int kWarps = kThreads / 32;
static_assert(kPerThread * 16 == kRun, "a half-warp adds one run in float32");

// Where operand 0 stands: one array, or a table that travels in the kernel's arguments or in device memory.
enum class Place { kFlat, kInlineTable, kDeviceTable };
struct NoTable {};

// kWidth elements of a vector from index i on, as many as there are before n.
template <class T, class F, bool kFull>
__device__ __forceinline__ Quad<T> load_quad(const F* at, std::int64_t i, std::int64_t n) {
  constexpr int W = Quad<T>::kWidth;
  Quad<T, F> quad{};
  if (kFull || i + W <= n) {
    quad = *reinterpret_cast<const Quad<T, F>*>(at + i);
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if (i + j < n) quad.at[j] = at[i + j];
    }
  }
  return widen_quad<T>(quad);
}

template <class T, bool kFull>
__device__ __forceinline__ void store_quad(T* at, std::int64_t i, std::int64_t n, const Quad<T>& quad) {
  constexpr int W = Quad<T>::kWidth;
  if (kFull || i + W <= n) {
    *reinterpret_cast<Quad<T>*>(at + i) = quad;
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if (i + j < n) at[i + j] = quad.at[j];
    }
  }
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

// One chunk of the vectors: adds this thread's terms to `sums`. F: the type that operand 0 is stored in. kFull: the
// chunk ends before n. kSkip: an operand to leave alone, or -1.
template <class Op, class T, class F, bool kTable, bool kFull, int kSkip>
__device__ __forceinline__ void chunk_pass(const Op& op, const Vectors<T, Op::kVectors>& vectors,
                                           const Segment* segments, std::int64_t count, std::int64_t s,
                                           std::int64_t chunk_begin, std::int64_t n, T* sums) {
  constexpr int W = Quad<T>::kWidth;
  constexpr int K = Op::kVectors;
  constexpr int R = Op::kReads;
  constexpr int kFirstWritten = K - Op::kWritten;
  // Quads of each vector in flight together: 8 loads of 16 bytes a thread hide the latency, more would spill registers.
  constexpr int kQuads = K > 2 || kTable ? 2 : 4;
  static_assert(kPerThread % (kQuads * W) == 0, "a chunk is whole batches");
#pragma unroll 1
  for (std::int64_t batch = chunk_begin + threadIdx.x * W; batch < chunk_begin + kChunk;
       batch += kQuads * kThreads * W) {
    Quad<T> quad[kQuads][K] = {};
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const std::int64_t i = batch + q * (kThreads * W);
      if constexpr (kTable) {
        if (kFull || i < n) quad[q][0] = load_from_table<T, F>(segments, count, s, i);
      } else {
        quad[q][0] = load_quad<T, F, kFull>(reinterpret_cast<const F*>(vectors.flat[0]), i, n);
      }
#pragma unroll
      for (int k = 1; k < R; ++k) {
        if (k != kSkip) quad[q][k] = load_quad<T, T, kFull>(vectors.flat[k], i, n);
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
        if (k != kSkip) store_quad<T, kFull>(vectors.flat[k], i, n, quad[q][k]);
      }
    }
  }
}

// As chunk_pass, which it calls as this chunk and this call need it.
template <class Op, class T, class F, bool kTable>
__device__ __forceinline__ void any_chunk(const Op& op, const Vectors<T, Op::kVectors>& vectors,
                                          const Segment* segments, std::int64_t count, std::int64_t begin,
                                          std::int64_t n, T* sums) {
  const std::int64_t s = kTable ? find_segment(segments, count, begin) : 0;
  const bool full = n - begin >= kChunk;
  if constexpr (Op::kOptional >= 0) {
    if (!op.uses_optional()) {
      if (full) {
        chunk_pass<Op, T, F, kTable, true, Op::kOptional>(op, vectors, segments, count, s, begin, n, sums);
      } else {
        chunk_pass<Op, T, F, kTable, false, Op::kOptional>(op, vectors, segments, count, s, begin, n, sums);
      }
      return;
    }
  }
  if (full) {
    chunk_pass<Op, T, F, kTable, true, -1>(op, vectors, segments, count, s, begin, n, sums);
  } else {
    chunk_pass<Op, T, F, kTable, false, -1>(op, vectors, segments, count, s, begin, n, sums);
  }
}

// Adds the chunks' partial sums, in a fixed order, and hands them to the driver: for the last block of a pass.
template <int S, class Driver>
__device__ __forceinline__ void finish_pass(const Driver& driver, const double* partials, std::int64_t chunks,
                                            double* warp_sums) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  double totals[S + 1] = {};
  if constexpr (S > 0) {
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
  }
  if (threadIdx.x == 0) {
#pragma unroll
    for (int m = 0; m < S; ++m) {
      totals[m] = 0.0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) totals[m] += warp_sums[m * kWarps + w];
    }
    driver.finish(totals);
  }
}

template <class Op, class T, class F, class Driver, Place kPlace>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    pass(const Vectors<T, Op::kVectors> vectors, const std::int64_t n, const Driver driver,
         const __grid_constant__ std::conditional_t<kPlace == Place::kInlineTable, InlineTable, NoTable> inline_table,
         double* partials, unsigned* ticket) {
  constexpr int S = Op::kSums;
  constexpr bool kTable = kPlace != Place::kFlat;
  NCG_SHARED(double, warp_sums, kWarps*(S > 0 ? S : 1));
  NCG_SHARED(unsigned, drawn, 1);
  Op op{};
  if (!driver.begin(op)) return;  // the same answer in every thread: nobody writes the state before the last ticket

  const Segment* segments = vectors.table.segments;
  const std::int64_t count = vectors.table.count;
  if constexpr (kPlace == Place::kInlineTable) segments = inline_table.segments;

  const std::int64_t chunks = chunk_count(n);
  for (std::int64_t turn = blockIdx.x; turn < chunks; turn += gridDim.x) {
    const std::int64_t c = Op::kReversed ? chunks - 1 - turn : turn;
    T sums[S + 1] = {};  // one to spare, for operations without sums
    any_chunk<Op, T, F, kTable>(op, vectors, segments, count, c * kChunk, n, sums);
    if constexpr (S > 0) {
#pragma unroll
      for (int m = 0; m < S; ++m) {
        const double sum = warp_sum(sums[m]);
        if (threadIdx.x % 32 == 0) warp_sums[m * kWarps + threadIdx.x / 32] = sum;
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
  }
  if constexpr (S == 0 && !Driver::kHasState) return;

  // the last block to get here adds the partial sums
  __threadfence();
  __syncthreads();
  // counts to the number of blocks and starts again at zero, ready for the next launch on this workspace
  if (threadIdx.x == 0) drawn[0] = atomicInc(ticket, gridDim.x - 1);
  __syncthreads();
  if (drawn[0] != gridDim.x - 1) return;
  __threadfence();
  finish_pass<S>(driver, partials, chunks, warp_sums);
}

// The tensors of the table from one flat vector: tensors = scale flat.
template <class T, Place kPlace>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) unpack_pass(
    const T* flat, const Table table, const std::int64_t n, const T scale,
    const __grid_constant__ std::conditional_t<kPlace == Place::kInlineTable, InlineTable, NoTable> inline_table) {
  constexpr int W = Quad<T>::kWidth;
  const Segment* segments = table.segments;
  if constexpr (kPlace == Place::kInlineTable) segments = inline_table.segments;
  const std::int64_t chunks = chunk_count(n);
  for (std::int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const std::int64_t begin = c * kChunk;
    std::int64_t s = find_segment(segments, table.count, begin);
#pragma unroll
    for (int q = 0; q < kPerThread / W; ++q) {
      const std::int64_t i = begin + (q * kThreads + threadIdx.x) * W;
      if (i >= n) break;
      Quad<T> quad = load_quad<T, T, false>(flat, i, n);
#pragma unroll
      for (int j = 0; j < W; ++j) quad.at[j] = scale * quad.at[j];
      store_to_table<T>(segments, table.count, s, i, quad);
    }
  }
}

}  // namespace ncg::cuda
