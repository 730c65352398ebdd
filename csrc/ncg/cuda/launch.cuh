// Picks the kernel for a call and queues it on the caller's stream, on the caller's device.
#pragma once

#include <cstring>

#include "ncg/call.h"
#include "ncg/cuda/engine.cuh"

namespace ncg::cuda {

#ifndef NCG_MAX_BLOCKS
#define NCG_MAX_BLOCKS (1 << 20)  // a block goes on to further chunks beyond 4e9 elements
#endif

inline unsigned grid_size(std::int64_t n) {
  const std::int64_t chunks = chunk_count(n);
  return static_cast<unsigned>(chunks < 1 ? 1 : (chunks > NCG_MAX_BLOCKS ? NCG_MAX_BLOCKS : chunks));
}

inline InlineTable inline_table(const Table& table) {
  InlineTable copy{};
  std::memcpy(copy.segments, table.segments, static_cast<std::size_t>(table.count) * sizeof(Segment));
  return copy;
}

// A table that is too long for the kernel's arguments goes into the room that the caller gave behind the partials,
// unless the caller has it in device memory already. A pageable source is staged before the call returns, so the host
// table may go at once; but in a graph it is read at every launch, and in the body of a graph's loop it is not allowed.
inline cudaError_t table_to_device(const Call& call, Table& table) {
  if (call.device_segments != nullptr) {
    table.segments = call.device_segments;
    return cudaSuccess;
  }
  auto* room = reinterpret_cast<Segment*>(call.partials + partials_size(call.n));
  table.segments = room;
  return cudaMemcpyAsync(room, call.table.segments, static_cast<std::size_t>(call.table.count) * sizeof(Segment),
                         cudaMemcpyHostToDevice, static_cast<cudaStream_t>(call.stream));
}

template <class Op, class F, class Driver>
cudaError_t launch(const Call& call, const Driver& driver) {
  using T = typename Op::Scalar;
  Vectors<T, Op::kVectors> vectors = vectors_of<Op>(call);
  const auto stream = static_cast<cudaStream_t>(call.stream);
  auto* ticket = static_cast<unsigned*>(call.ticket);
  const unsigned grid = grid_size(call.n);
  if constexpr (Op::kTakesTable) {
    if (call.table.count > kInlineSegments) {
      const cudaError_t copied = table_to_device(call, vectors.table);
      if (copied != cudaSuccess) return copied;
      return NCG_LAUNCH((pass<Op, T, F, Driver, Place::kDeviceTable>), grid, kThreads, stream, vectors, call.n, driver,
                        NoTable{}, call.partials, ticket);
    }
    if (call.table.count > 0) {
      return NCG_LAUNCH((pass<Op, T, F, Driver, Place::kInlineTable>), grid, kThreads, stream, vectors, call.n, driver,
                        inline_table(call.table), call.partials, ticket);
    }
  }
  return NCG_LAUNCH((pass<Op, T, F, Driver, Place::kFlat>), grid, kThreads, stream, vectors, call.n, driver, NoTable{},
                    call.partials, ticket);
}

template <class Op, class F>
const char* launch_with_driver(const Call& call) {
  const cudaError_t status = with_driver<Op>(call, [&](const auto& driver) { return launch<Op, F>(call, driver); });
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

template <template <class> class Functor>
const char* launch_as(Dtype dtype, const Call& call) {
  if (dtype == Dtype::kFloat64) return launch_with_driver<Functor<double>, double>(call);
  if (dtype == Dtype::kFloat32) return launch_with_driver<Functor<float>, float>(call);
  if constexpr (Functor<float>::kTakesTable) return launch_with_driver<Functor<float>, Bfloat16>(call);
  return "this operation takes no bfloat16 operand";
}

#define NCG_DEFINE_LAUNCH(name, Functor)                                            \
  extern "C" const char* ncg_cuda_##name(ncg::Dtype dtype, const ncg::Call* call) { \
    return ncg::cuda::launch_as<ncg::Functor>(dtype, *call);                        \
  }

}  // namespace ncg::cuda
