// Stands in for csrc/tensorflow/stream.h: the GPU kernels of the ops as CPU kernels that TensorFlow prefers to the real
// ones, with the CUDA engine run by the emulator.
#pragma once

#include <cstring>
#include <mutex>

#include "counts.h"
#include "tensorflow/core/framework/op_kernel.h"

#define NCG_GPU_DEVICE tensorflow::DEVICE_CPU
#define NCG_GPU_PRIORITY 1

namespace ncg::tf {

inline std::mutex one_op_at_a_time;  // the emulator has one set of threads

class Stream {
 public:
  explicit Stream(tensorflow::OpKernelContext*) : lock_(one_op_at_a_time) { ++counts.ops; }

  absl::Status status() const { return absl::OkStatus(); }
  void* handle() const {  // asked for once per launch
    ++counts.launches;
    return nullptr;
  }
  absl::Status copy(void* to, const void* from, std::size_t bytes) {
    ++counts.copies;
    if (bytes > 0) std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status zero(void* to, std::size_t bytes) {
    if (bytes > 0) std::memset(to, 0, bytes);
    return absl::OkStatus();
  }
  absl::Status write(void* to, const void* host, std::size_t bytes) {
    counts.written_bytes += static_cast<std::int64_t>(bytes);
    std::memcpy(to, host, bytes);
    return absl::OkStatus();
  }

 private:
  std::lock_guard<std::mutex> lock_;
};

}  // namespace ncg::tf
