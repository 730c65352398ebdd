// Launches: picks the kernel for a call and queues it on the caller's stream, on the caller's device.
#include <cstring>

#include "ncg/cuda/engine.cuh"
#include "ncg/cuda/launch.h"

namespace ncg::cuda {
namespace {

#ifndef NCG_MAX_BLOCKS
#define NCG_MAX_BLOCKS (1 << 20)  // a block goes on to further chunks beyond 4e9 elements
#endif

template <class Op, class Driver>
cudaError_t launch(const Call& call, const Driver& driver) {
  using T = typename Op::Scalar;
  Vectors<T, Op::kVectors> vectors = vectors_of<Op>(call);
  const auto stream = static_cast<cudaStream_t>(call.stream);
  auto* ticket = static_cast<unsigned*>(call.ticket);
  std::int64_t blocks = chunk_count(call.n);
  if (blocks > NCG_MAX_BLOCKS) blocks = NCG_MAX_BLOCKS;
  if (blocks < 1) blocks = 1;
  const auto grid = static_cast<unsigned>(blocks);
  if (call.table.count == 0) {
    NCG_LAUNCH((pass<Op, T, Driver, Place::kFlat>), grid, kThreads, stream, vectors, call.n, driver, NoTable{},
               call.partials, ticket);
  } else if (call.table.count <= kInlineSegments) {
    InlineTable table{};
    std::memcpy(table.segments, call.table.segments, static_cast<std::size_t>(call.table.count) * sizeof(Segment));
    NCG_LAUNCH((pass<Op, T, Driver, Place::kInlineTable>), grid, kThreads, stream, vectors, call.n, driver, table,
               call.partials, ticket);
  } else {
    // The caller gave room for the table behind the partials. A pageable source is staged before the call returns, so
    // the host table may go at once.
    auto* room = reinterpret_cast<Segment*>(call.partials + partials_size(call.n));
    const cudaError_t copied =
        cudaMemcpyAsync(room, call.table.segments, static_cast<std::size_t>(call.table.count) * sizeof(Segment),
                        cudaMemcpyHostToDevice, stream);
    if (copied != cudaSuccess) return copied;
    vectors.table.segments = room;
    NCG_LAUNCH((pass<Op, T, Driver, Place::kDeviceTable>), grid, kThreads, stream, vectors, call.n, driver, NoTable{},
               call.partials, ticket);
  }
  return cudaGetLastError();
}

template <template <class> class Functor, bool kInSolve>
const char* launch_as(Dtype dtype, const Call& call) {
  const cudaError_t status = dtype == Dtype::kFloat32
                                 ? with_driver<Functor<float>, kInSolve>(
                                       call, [&](const auto& driver) { return launch<Functor<float>>(call, driver); })
                                 : with_driver<Functor<double>, kInSolve>(
                                       call, [&](const auto& driver) { return launch<Functor<double>>(call, driver); });
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace
}  // namespace ncg::cuda

extern "C" {
#define NCG_DEFINE_LAUNCH(name, Functor, in_solve)                       \
  const char* ncg_cuda_##name(ncg::Dtype dtype, const ncg::Call* call) { \
    return ncg::cuda::launch_as<ncg::Functor, in_solve>(dtype, *call);   \
  }
NCG_OPERATIONS(NCG_DEFINE_LAUNCH)
#undef NCG_DEFINE_LAUNCH

int ncg_cuda_device_count(const char** why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  *why = status == cudaSuccess ? (count > 0 ? "" : "no CUDA device") : cudaGetErrorString(status);
  return status == cudaSuccess ? count : 0;
}

#define NCG_STRING_(x) #x
#define NCG_STRING(x) NCG_STRING_(x)
const char* ncg_cuda_version() { return NCG_STRING(__CUDACC_VER_MAJOR__) "." NCG_STRING(__CUDACC_VER_MINOR__); }

std::int64_t ncg_cuda_table_bytes(std::int64_t count) {
  return count <= ncg::cuda::kInlineSegments ? 0 : count * static_cast<std::int64_t>(sizeof(ncg::Segment));
}
}
