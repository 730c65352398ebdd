// The CPU engine: runs any operation of operations.h over flat vectors or a table, on the executor it is given.
//
// The inner loop is written once, over GCC/Clang vectors of kLanes elements (no intrinsics): an operation's functor is
// a template over its value type, a vector here, a scalar on the GPU.
#pragma once

#include <cstring>

#include "ncg/chunk.h"
#include "ncg/driver.h"
#include "ncg/operation.h"
#include "ncg/vectors.h"

namespace ncg::cpu {

template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));

  static NCG_HD Vector load(const T* at) { return *reinterpret_cast<const Unaligned*>(at); }
};

template <>
struct Lanes<Bfloat16> {
  typedef std::uint16_t Half __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  typedef std::uint32_t Bits __attribute__((vector_size(kLanes * 4)));

  static NCG_HD Lanes<float>::Vector load(const Bfloat16* at) {
    const Bits bits = __builtin_convertvector(*reinterpret_cast<const Half*>(at), Bits) << 16;
    Lanes<float>::Vector wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
  }
};

// `count` < kLanes numbers, then zeros.
template <class F>
NCG_HD auto load_some(const F* at, std::int64_t count) {
  F padded[kLanes] = {};
  std::memcpy(padded, at, static_cast<std::size_t>(count) * sizeof(F));
  return Lanes<F>::load(padded);
}

// Elements [0, n) of each operand, in runs of kRun (n may end inside one); adds to the chunk's float64 lane sums.
// Operand 0 comes by itself, since it may be stored in another type. kSkip: an operand to leave alone, or -1.
template <class Op, class T, class F, int kSkip>
NCG_CLONES void accumulate_runs(const Op op, const F* first, T* const* operand, std::int64_t n, double* lane_sums) {
  using Vector = typename Lanes<T>::Vector;
  using Unaligned = typename Lanes<T>::Unaligned;
  constexpr int K = Op::kVectors;
  constexpr int kFirstWritten = K - Op::kWritten;
  T* at[K];
  for (int k = 0; k < K; ++k) at[k] = operand[k];

  for (std::int64_t run = 0; run < n; run += kRun) {
    const std::int64_t end = n - run < kRun ? n : run + kRun;
    Vector acc[Op::kSums + 1] = {};  // one to spare, for operations without sums
    std::int64_t i = run;
    for (; i + kLanes <= end; i += kLanes) {
      Vector v[K] = {};
      v[0] = Lanes<F>::load(first + i);
#pragma GCC unroll 8
      for (int k = 1; k < Op::kReads; ++k) {
        if (k != kSkip) v[k] = Lanes<T>::load(at[k] + i);
      }
      op(v, acc);
#pragma GCC unroll 8
      for (int k = kFirstWritten; k < K; ++k) {
        if (k != kSkip) *reinterpret_cast<Unaligned*>(at[k] + i) = v[k];
      }
    }
    if (i < end) {  // the vector's last few elements, padded with zeros, by the same arithmetic
      const std::int64_t count = end - i;
      Vector v[K] = {};
      v[0] = load_some(first + i, count);
      for (int k = 1; k < Op::kReads; ++k) {
        if (k != kSkip) v[k] = load_some(at[k] + i, count);
      }
      op(v, acc);
      for (int k = kFirstWritten; k < K; ++k) {
        if (k != kSkip) std::memcpy(at[k] + i, &v[k], static_cast<std::size_t>(count) * sizeof(T));
      }
    }
    for (int m = 0; m < Op::kSums; ++m) {
      for (int j = 0; j < kLanes; ++j) lane_sums[m * kLanes + j] += static_cast<double>(acc[m][j]);
    }
  }
}

// Where operand 0 stands in a table: calls f(data, begin, end) for stretches of whole runs of [begin, end) that lie in
// one segment, and for a run that crosses segments or padding, with its elements gathered into a zeroed buffer. `hint`:
// a segment near `begin`; takes the one that was right.
template <class T, class F>
void for_each_stretch(const Table& table, std::int64_t begin, std::int64_t end, std::int64_t& hint, F&& f) {
  std::int64_t s = find_segment_near(table.segments, table.count, begin, hint);
  hint = s;
  std::int64_t i = begin;
  while (i < end) {
    while (s + 1 < table.count && table.segments[s + 1].offset <= i) ++s;
    const std::int64_t run_end = i + kRun < end ? i + kRun : end;
    if (s >= 0) {
      const Segment& segment = table.segments[s];
      const std::int64_t segment_end = segment.offset + segment.length;
      if (run_end <= segment_end) {
        // whole runs only, so that runs stay where a flat vector has them
        const std::int64_t whole = segment_end >= end ? end : i + (segment_end - i) / kRun * kRun;
        f(static_cast<const T*>(segment.data) + (i - segment.offset), i, whole);
        i = whole;
        continue;
      }
    }
    alignas(64) T gathered[kRun] = {};
    for (std::int64_t t = s < 0 ? 0 : s; t < table.count && table.segments[t].offset < run_end; ++t) {
      const Segment& segment = table.segments[t];
      const std::int64_t from = segment.offset > i ? segment.offset : i;
      const std::int64_t to = segment.offset + segment.length < run_end ? segment.offset + segment.length : run_end;
      if (from < to) {
        std::memcpy(gathered + (from - i), static_cast<const T*>(segment.data) + (from - segment.offset),
                    static_cast<std::size_t>(to - from) * sizeof(T));
      }
    }
    f(static_cast<const T*>(gathered), i, run_end);
    i = run_end;
  }
}

template <class Op, class T, class F>
void run_chunk(const Op& op, const Vectors<T, Op::kVectors>& vectors, std::int64_t begin, std::int64_t end,
               std::int64_t& hint, double* sums) {
  constexpr int K = Op::kVectors;
  double lane_sums[(Op::kSums + 1) * kLanes] = {};
  auto stretch = [&](const F* first, std::int64_t from, std::int64_t to) {
    T* operand[K];
    operand[0] = nullptr;
    for (int k = 1; k < K; ++k) operand[k] = vectors.flat[k] + from;
    if constexpr (Op::kOptional >= 0) {
      if (!op.uses_optional()) {
        accumulate_runs<Op, T, F, Op::kOptional>(op, first, operand, to - from, lane_sums);
        return;
      }
    }
    accumulate_runs<Op, T, F, -1>(op, first, operand, to - from, lane_sums);
  };
  if (Op::kTakesTable && vectors.table.count > 0) {
    for_each_stretch<F>(vectors.table, begin, end, hint, stretch);
  } else {
    stretch(reinterpret_cast<const F*>(vectors.flat[0]) + begin, begin, end);
  }
  for (int m = 0; m < Op::kSums; ++m) {
    double* lane = lane_sums + m * kLanes;
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
    }
    sums[m] = lane[0];
  }
}

// F: the type that operand 0 is stored in. partials: room for chunk_count(n) * Op::kSums numbers. parallel_for(count,
// f) calls f(first, last) on disjoint ranges that cover [0, count), and returns when all are done.
template <class Op, class T, class F = T, class Driver, class ParallelFor>
void run(const Vectors<T, Op::kVectors>& vectors, std::int64_t n, const Driver& driver, double* partials,
         const ParallelFor& parallel_for) {
  static_assert(Op::kVectors > Op::kWritten, "operand 0 is only read");
  Op op{};
  if (!driver.begin(op)) return;
  const std::int64_t chunks = chunk_count(n);
  parallel_for(chunks, [&](std::int64_t first, std::int64_t last) {
    std::int64_t hint = -1;
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t c = Op::kReversed ? chunks - 1 - i : i;
      const std::int64_t begin = c * kChunk;
      const std::int64_t end = n - begin < kChunk ? n : begin + kChunk;
      run_chunk<Op, T, F>(op, vectors, begin, end, hint, partials + c * Op::kSums);
    }
  });
  double sums[Op::kSums + 1] = {};
  for (std::int64_t c = 0; c < chunks; ++c) {
    for (int m = 0; m < Op::kSums; ++m) sums[m] += partials[c * Op::kSums + m];
  }
  driver.finish(sums);
}

// The other way about: the tensors of the table from one flat vector, tensors = scale flat.
template <class T, class ParallelFor>
void unpack(const T* flat, const Table& table, std::int64_t n, T scale, const ParallelFor& parallel_for) {
  parallel_for(chunk_count(n), [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kChunk;
    const std::int64_t end = n < last * kChunk ? n : last * kChunk;
    const std::int64_t start = find_segment(table.segments, table.count, begin);
    for (std::int64_t s = start < 0 ? 0 : start; s < table.count && table.segments[s].offset < end; ++s) {
      const Segment& segment = table.segments[s];
      const std::int64_t segment_end = segment.offset + segment.length;
      const std::int64_t from = segment.offset > begin ? segment.offset : begin;
      const std::int64_t to = segment_end < end ? segment_end : end;
      T* out = static_cast<T*>(const_cast<void*>(segment.data)) + (from - segment.offset);
      for (std::int64_t i = from; i < to; ++i) out[i - from] = scale * flat[i];
    }
  });
}

}  // namespace ncg::cpu
