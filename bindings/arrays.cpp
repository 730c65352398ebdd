#include "arrays.h"

#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "dlpack.h"

namespace py = pybind11;
namespace dlpack = ncg::dlpack;

namespace {

// NumPy's type numbers, fixed by its ABI
constexpr int kNumpyFloat = 11;
constexpr int kNumpyDouble = 12;

std::string name_of(const py::dtype& dtype) {
  const bool native = dtype.byteorder() != '>';  // every platform we build for is little-endian
  if (native && dtype.num() == kNumpyFloat) return "float32";
  if (native && dtype.num() == kNumpyDouble) return "float64";
  // "bfloat16" of ml_dtypes; "float16", ">f4" and others for the error message
  return native ? dtype.attr("name").cast<std::string>() : py::str(dtype).cast<std::string>();
}

std::string name_of(const dlpack::DataType& type) {
  const std::string bits = std::to_string(type.bits);
  std::string name;
  switch (type.code) {
    case dlpack::kInt:
      name = "int" + bits;
      break;
    case dlpack::kUInt:
      name = "uint" + bits;
      break;
    case dlpack::kFloat:
      name = "float" + bits;
      break;
    case dlpack::kBfloat:
      name = "bfloat" + bits;
      break;
    case dlpack::kComplex:
      name = "complex" + bits;
      break;
    case dlpack::kBool:
      name = "bool";
      break;
    default:
      name = "of DLPack code " + std::to_string(type.code) + " with " + bits + " bits";
  }
  return type.lanes == 1 ? name : name + " in vectors of " + std::to_string(type.lanes);
}

// (address, elements, dtype, C-contiguous, writeable)
py::tuple describe_ndarray(const py::array& array) {
  const int flags = array.flags();
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data()), array.size(), name_of(array.dtype()),
                        (flags & py::array::c_style) != 0, (flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0);
}

bool contiguous(const dlpack::Tensor& tensor) {
  if (tensor.strides == nullptr) return true;
  std::int64_t expected = 1;
  for (std::int32_t i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] == 0) return true;
  }
  for (std::int32_t i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

// Reads a capsule without consuming it: its destructor still gives the memory back, so it has to be kept while the
// address is in use. (address, elements, dtype, device type, device number, C-contiguous, read-only)
py::tuple read_capsule(const py::capsule& capsule) {
  const char* name = capsule.name();
  const dlpack::Tensor* tensor = nullptr;
  bool read_only = false;
  if (name != nullptr && std::strcmp(name, "dltensor") == 0) {
    tensor = &capsule.get_pointer<dlpack::Managed>()->tensor;
  } else if (name != nullptr && std::strcmp(name, "dltensor_versioned") == 0) {
    const auto* versioned = capsule.get_pointer<dlpack::Versioned>();
    if (versioned->major != dlpack::kMajor) {
      throw py::buffer_error("the capsule is of DLPack " + std::to_string(versioned->major) + "." +
                             std::to_string(versioned->minor) + "; versions 0 and 1 can be read");
    }
    tensor = &versioned->tensor;
    read_only = (versioned->flags & dlpack::kReadOnly) != 0;
  } else {
    throw py::buffer_error(std::string("a capsule named '") + (name == nullptr ? "" : name) +
                           "'; \"dltensor\" or \"dltensor_versioned\", not used before, is needed");
  }
  std::int64_t size = 1;
  for (std::int32_t i = 0; i < tensor->ndim; ++i) size *= tensor->shape[i];
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(tensor->data) + tensor->byte_offset, size,
                        name_of(tensor->dtype), static_cast<int>(tensor->device.type), tensor->device.id,
                        contiguous(*tensor), read_only);
}

// The addresses of a list of plain ndarrays of these lengths and this dtype, or None where one of them is anything
// else: the caller then looks at them one by one, which takes a hundred times as long.
py::object addresses_of_ndarrays(const py::sequence& tensors, const py::array_t<std::int64_t>& lengths,
                                 const std::string& dtype, bool written) {
  const auto count = static_cast<py::ssize_t>(tensors.size());
  if (lengths.size() != count) return py::none();
  static const py::handle ndarray = py::object(py::module_::import("numpy").attr("ndarray")).release();
  py::array_t<std::int64_t> addresses(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    const py::object item = tensors[static_cast<std::size_t>(i)];
    if (py::type::handle_of(item).ptr() != ndarray.ptr()) return py::none();  // a subclass may mean something else
    const auto array = py::reinterpret_borrow<py::array>(item);
    const int flags = array.flags();
    const bool writeable = (flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0;
    const bool aligned = (flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    if ((flags & py::array::c_style) == 0 || !aligned || (written && !writeable) || array.size() != lengths.at(i) ||
        name_of(array.dtype()) != dtype) {
      return py::none();
    }
    addresses.mutable_at(i) = array.size() == 0 ? 0 : reinterpret_cast<std::int64_t>(array.data());
  }
  return addresses;
}

}  // namespace

void bind_arrays(py::module_& module) {
  module.def("describe_ndarray", &describe_ndarray, py::arg("array").noconvert());
  module.def("addresses_of_ndarrays", &addresses_of_ndarrays, py::arg("tensors"), py::arg("lengths"), py::arg("dtype"),
             py::arg("written"));
  module.def("read_capsule", &read_capsule, py::arg("capsule"));
}
