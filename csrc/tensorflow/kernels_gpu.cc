// GPU kernels of the TensorFlow ops: the CUDA engine on the op's own stream. Needs no CUDA header, so that one library
// serves the CPU and the GPU build of TensorFlow.
//
// Nothing here waits for the GPU, and no vector crosses to the host: the state block lives on the GPU too, and the only
// thing the host sees of an iteration is the one byte of the while loop's condition, which TensorFlow fetches.
#include <cstring>

#include "ncg/cuda/launch.h"
#include "ncg/operations.h"
#include "tensorflow/kernels.h"
#include "tensorflow/stream.h"

namespace ncg::tf {
namespace {

template <class T>
class Gpu {
 public:
  explicit Gpu(OpKernelContext* ctx) : stream_(ctx) {}

  absl::Status status() const { return stream_.status(); }
  static std::int64_t table_room(std::int64_t count) {
    return ncg_cuda_table_bytes(count) / static_cast<std::int64_t>(sizeof(double));
  }
  absl::Status copy(void* to, const void* from, std::size_t bytes) { return stream_.copy(to, from, bytes); }
  absl::Status zero(void* to, std::size_t bytes) { return stream_.zero(to, bytes); }
  absl::Status write(void* to, const void* host, std::size_t bytes) { return stream_.write(to, host, bytes); }

#define NCG_METHOD(name, Functor)                           \
  absl::Status name(Call call) {                            \
    call.stream = stream_.handle();                         \
    return launched(#name, ncg_cuda_##name(kDtype, &call)); \
  }
  NCG_OPERATIONS(NCG_METHOD)
#undef NCG_METHOD

 private:
  static constexpr Dtype kDtype = sizeof(T) == sizeof(float) ? Dtype::kFloat32 : Dtype::kFloat64;

  static absl::Status launched(const char* name, const char* error) {
    if (error == nullptr) return absl::OkStatus();
    const char* remedy = std::strstr(error, "no kernel image") == nullptr
                             ? ""
                             : "; build ncg_cuda again for this GPU: CUDAARCHS=native pip install ...";
    return absl::InternalError(absl::StrCat("ncg_cuda: ", name, ": ", error, remedy));
  }

  Stream stream_;
};

NCG_REGISTER(Gpu, NCG_GPU_DEVICE, NCG_GPU_PRIORITY)

}  // namespace
}  // namespace ncg::tf
