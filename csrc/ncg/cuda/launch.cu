// The other operations, and what a caller asks of the engine.
#include "ncg/cuda/launch.cuh"
#include "ncg/cuda/launch.h"

NCG_OTHER_OPERATIONS(NCG_DEFINE_LAUNCH)

namespace ncg::cuda {
namespace {

template <class T>
const char* unpack(const Call& call) {
  const auto* flat = static_cast<const T*>(call.operand[1]);
  const auto scale = static_cast<T>(call.params[0]);
  const auto stream = static_cast<cudaStream_t>(call.stream);
  const unsigned grid = grid_size(call.n);
  Table table = call.table;
  cudaError_t status = cudaSuccess;
  if (table.count > kInlineSegments) {
    status = table_to_device(call, table);
    if (status == cudaSuccess) {
      status = NCG_LAUNCH((unpack_pass<T, Place::kDeviceTable>), grid, kThreads, stream, flat, table, call.n, scale,
                          NoTable{});
    }
  } else {
    status = NCG_LAUNCH((unpack_pass<T, Place::kInlineTable>), grid, kThreads, stream, flat, table, call.n, scale,
                        inline_table(table));
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace
}  // namespace ncg::cuda

extern "C" {
const char* ncg_cuda_unpack(ncg::Dtype dtype, const ncg::Call* call) {
  return dtype == ncg::Dtype::kFloat64 ? ncg::cuda::unpack<double>(*call) : ncg::cuda::unpack<float>(*call);
}

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
  return count <= ncg::kInlineSegments ? 0 : count * static_cast<std::int64_t>(sizeof(ncg::Segment));
}
}
