// Operand 0 as a table of tensors: 128-bit accesses where a tensor stands aligned, scalar ones at its ends.
#pragma once

#include <cstdint>

#include "ncg/cuda/platform.cuh"
#include "ncg/operation.h"
#include "ncg/vectors.h"

namespace ncg::cuda {

struct InlineTable {
  Segment segments[kInlineSegments];
};

// The elements of a vector that a thread moves at once: 16 bytes of the vectors' type. F: the type they are stored in.
template <class T, class F = T>
struct alignas((16 / sizeof(T)) * sizeof(F)) Quad {
  static constexpr int kWidth = 16 / sizeof(T);
  F at[kWidth];
};

template <class T, class F>
__device__ __forceinline__ Quad<T> widen_quad(const Quad<T, F>& narrow) {
  Quad<T> wide;
#pragma unroll
  for (int j = 0; j < Quad<T>::kWidth; ++j) wide.at[j] = widen(narrow.at[j]);
  return wide;
}

// The part of segment s that starts at index i of the table: false in padding. Advances s from a segment at or before
// the right one. Offsets are multiples of kLanes, so a quad never starts in one segment and ends in the next.
template <class F>
__device__ __forceinline__ bool find_part(const Segment* segments, std::int64_t count, std::int64_t& s, std::int64_t i,
                                          const F*& data, std::int64_t& left) {
  while (s + 1 < count && segments[s + 1].offset <= i) ++s;
  if (s < 0) return false;
  const std::int64_t at = i - segments[s].offset;
  left = segments[s].length - at;
  data = static_cast<const F*>(segments[s].data) + at;
  return left > 0;
}

template <class Q, class F>
__device__ __forceinline__ bool whole(const F* data, std::int64_t left) {
  return left >= Q::kWidth && reinterpret_cast<std::uintptr_t>(data) % sizeof(Q) == 0;
}

// Elements of the table from index i on, zeros where it has padding.
template <class T, class F>
__device__ __forceinline__ Quad<T> load_from_table(const Segment* segments, std::int64_t count, std::int64_t& s,
                                                   std::int64_t i) {
  using Q = Quad<T, F>;
  Q quad{};
  const F* data = nullptr;
  std::int64_t left = 0;
  if (!find_part(segments, count, s, i, data, left)) return widen_quad<T>(quad);
  if (whole<Q>(data, left)) {
    quad = *reinterpret_cast<const Q*>(data);
  } else {
#pragma unroll
    for (int j = 0; j < Q::kWidth; ++j) {
      if (j < left) quad.at[j] = data[j];
    }
  }
  return widen_quad<T>(quad);
}

template <class T>
__device__ __forceinline__ void store_to_table(const Segment* segments, std::int64_t count, std::int64_t& s,
                                               std::int64_t i, const Quad<T>& quad) {
  const T* data = nullptr;
  std::int64_t left = 0;
  if (!find_part(segments, count, s, i, data, left)) return;
  T* out = const_cast<T*>(data);
  if (whole<Quad<T>>(data, left)) {
    *reinterpret_cast<Quad<T>*>(out) = quad;
  } else {
#pragma unroll
    for (int j = 0; j < Quad<T>::kWidth; ++j) {
      if (j < left) out[j] = quad.at[j];
    }
  }
}

}  // namespace ncg::cuda
