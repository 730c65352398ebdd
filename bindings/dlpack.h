// The part of DLPack's C ABI (https://dmlc.github.io/dlpack/latest/c_api.html) that reading a capsule needs.
#pragma once

#include <cstdint>

namespace ncg::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: C-contiguous
  std::uint64_t byte_offset;
};

// "dltensor": before version 1, without flags
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

// "dltensor_versioned"
struct Versioned {
  std::uint32_t major, minor;
  void* context;
  void (*deleter)(Versioned*);
  std::uint64_t flags;
  Tensor tensor;
};

constexpr std::uint32_t kMajor = 1;  // the fields behind `deleter` may stand elsewhere in another major version
constexpr std::uint64_t kReadOnly = 1;

}  // namespace ncg::dlpack
