// What the emulated GPU kernels of the TensorFlow ops would have asked a GPU to do, since the library was loaded.
#pragma once

#include <cstdint>

namespace ncg::tf {

struct Counts {
  std::int64_t ops;            // calls of an op that needed the device
  std::int64_t launches;       // of the CUDA engine
  std::int64_t copies;         // between buffers of the device
  std::int64_t written_bytes;  // from host memory
};
inline Counts counts{};

}  // namespace ncg::tf
