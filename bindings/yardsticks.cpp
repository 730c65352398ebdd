// Plain streams that benchmarks measure the operations by. Arguments are checked by ncg_cuda/benchmarks/yardsticks.py.
#include "yardsticks.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "ncg/yardsticks/shapes.h"

namespace py = pybind11;

namespace {

using ncg::yardsticks::Stream;

Stream describe(const std::vector<std::uintptr_t>& operands, std::int64_t n, int variant, int threads) {
  if (operands.empty() || operands.size() > ncg::yardsticks::kMaxVectors || threads < 1) {
    throw std::invalid_argument("yardstick: wrong number of operands or threads");
  }
  Stream call{};
  for (std::size_t k = 0; k < operands.size(); ++k) call.operand[k] = reinterpret_cast<float*>(operands[k]);
  call.vectors = static_cast<int>(operands.size());
  call.n = n;
  call.variant = variant;
  call.threads = threads;
  return call;
}

void raise(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("yardstick: ") + error);
}

void stream(bool on_gpu, int reads, int writes, const std::vector<std::uintptr_t>& operands, std::int64_t n,
            float scale, std::uintptr_t sum, int variant, int threads, std::uintptr_t stream) {
  Stream call = describe(operands, n, variant, threads);
  call.reads = reads;
  call.writes = writes;
  call.scale = scale;
  call.sum = reinterpret_cast<double*>(sum);
  call.stream = reinterpret_cast<void*>(stream);
  const char* error = nullptr;
  {
    const py::gil_scoped_release release;
    if (on_gpu) {
#ifdef NCG_WITH_CUDA
      error = ncg_cuda_stream(&call);
#else
      error = "this build has no CUDA engine";
#endif
    } else {
      error = ncg_cpu_stream(call);
    }
  }
  raise(error);
}

void copy(std::uintptr_t source, std::uintptr_t target, std::int64_t n, int variant, int threads) {
  const Stream call = describe({source, target}, n, variant, threads);
  const char* error = nullptr;
  {
    const py::gil_scoped_release release;
    error = ncg_cpu_copy(call);
  }
  raise(error);
}

}  // namespace

void bind_yardsticks(py::module_& module) {
  module.def("stream", &stream, py::arg("on_gpu"), py::arg("reads"), py::arg("writes"), py::arg("operands"),
             py::arg("n"), py::kw_only(), py::arg("scale"), py::arg("sum"), py::arg("variant"), py::arg("threads") = 1,
             py::arg("stream") = 0);
  module.def("copy", &copy, py::arg("source"), py::arg("target"), py::arg("n"), py::kw_only(), py::arg("variant"),
             py::arg("threads") = 1);
  std::vector<std::vector<int>> shapes;
#define NCG_SHAPE(R, W, K) shapes.push_back({R, W, K});
  NCG_STREAM_SHAPES(NCG_SHAPE)
#undef NCG_SHAPE
  py::list listed;
  for (const auto& shape : shapes) listed.append(py::make_tuple(shape[0], shape[1], shape[2]));
  module.attr("STREAM_SHAPES") = py::tuple(listed);
}
