// The op's stream: all that the GPU kernels need of TensorFlow's StreamExecutor, and where they are registered. A build
// that runs the GPU kernels elsewhere replaces this header alone.
#pragma once

#include <memory>

#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

// TensorFlow 2.18 has no such header; there, as in all later versions, the device is current when an op is called, and
// only this library's own check of that is missing.
#if __has_include("xla/stream_executor/activate_context.h")
#include "xla/stream_executor/activate_context.h"
#define NCG_HAVE_ACTIVATE
#endif

#define NCG_GPU_DEVICE tensorflow::DEVICE_GPU
#define NCG_GPU_PRIORITY 0

namespace ncg::tf {

// Work that is queued here comes after all that produced the op's inputs and before all that uses its outputs. While it
// lives, the stream's device is the thread's current one, which is where the launches of ncg/cuda/launch.h go.
class Stream {
 public:
  explicit Stream(tensorflow::OpKernelContext* ctx) {
    tensorflow::DeviceContext* context = ctx->op_device_context();
    stream_ = context != nullptr ? context->stream() : nullptr;
#ifdef NCG_HAVE_ACTIVATE
    if (stream_ != nullptr) active_ = stream_->parent()->Activate();
#endif
  }

  absl::Status status() const {
    // without a handle the work would go to the default stream, which waits for no other stream of TensorFlow's
    if (stream_ == nullptr || handle() == nullptr) return absl::InternalError("this device has no CUDA stream");
    return absl::OkStatus();
  }
  void* handle() const { return stream_->platform_specific_handle().stream; }

  absl::Status copy(void* to, const void* from, std::size_t bytes) {
    if (bytes == 0) return absl::OkStatus();
    Address target(to, bytes);
    return stream_->Memcpy(&target, Address(const_cast<void*>(from), bytes), bytes);
  }
  absl::Status zero(void* to, std::size_t bytes) {
    if (bytes == 0) return absl::OkStatus();
    Address target(to, bytes);
    return stream_->MemZero(&target, bytes);
  }
  // Pageable memory is staged before the call returns.
  absl::Status write(void* to, const void* host, std::size_t bytes) {
    Address target(to, bytes);
    return stream_->Memcpy(&target, host, bytes);
  }

 private:
  // StreamExecutor's type of a device address has had several names; this is the one that its streams take.
  template <class Address>
  static Address address_of(absl::Status (stream_executor::Stream::*)(Address*, std::uint64_t));
  using Address = decltype(address_of(&stream_executor::Stream::MemZero));

  stream_executor::Stream* stream_ = nullptr;
#ifdef NCG_HAVE_ACTIVATE
  std::unique_ptr<stream_executor::ActivateContext> active_;
#endif
};

}  // namespace ncg::tf
