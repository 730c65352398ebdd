// ncg_cuda._core: addresses in, kernels out. Every check of an argument (type, size, device, overlap) is made by
// ncg_cuda/ops.py; nothing here is meant to be called by a user.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"
#include "ncg/call.h"
#include "ncg/cpu/engine.h"
#include "ncg/cpu/openmp.h"
#include "ncg/operations.h"
#include "yardsticks.h"
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef NCG_WITH_CUDA
#include "ncg/cuda/graph/loop.h"
#include "ncg/cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

int default_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

int num_threads = default_threads();

template <class Op, class F>
void run_on_cpu(const ncg::Call& call) {
  ncg::with_driver<Op>(call, [&](const auto& driver) {
    ncg::cpu::run<Op, typename Op::Scalar, F>(ncg::vectors_of<Op>(call), call.n, driver, call.partials,
                                              ncg::cpu::OpenMp{num_threads});
  });
}

template <template <class> class Functor>
const char* run_on_cpu_as(ncg::Dtype dtype, const ncg::Call* call) {
  if (dtype == ncg::Dtype::kFloat32) {
    run_on_cpu<Functor<float>, float>(*call);
  } else if (dtype == ncg::Dtype::kFloat64) {
    run_on_cpu<Functor<double>, double>(*call);
  } else if constexpr (Functor<float>::kTakesTable) {
    run_on_cpu<Functor<float>, ncg::Bfloat16>(*call);
  } else {
    return "this operation takes no bfloat16 operand";
  }
  return nullptr;
}

template <class T>
void unpack_as(const ncg::Call& call) {
  ncg::cpu::unpack<T>(static_cast<const T*>(call.operand[1]), call.table, call.n, static_cast<T>(call.params[0]),
                      ncg::cpu::OpenMp{num_threads});
}

const char* unpack_on_cpu(ncg::Dtype dtype, const ncg::Call* call) {
  if (dtype == ncg::Dtype::kFloat64) {
    unpack_as<double>(*call);
  } else {
    unpack_as<float>(*call);
  }
  return nullptr;
}

using Launch = const char* (*)(ncg::Dtype, const ncg::Call*);

void bind_operation(py::module_& module, const char* name, std::size_t operand_count, Launch on_cpu_launch,
                    Launch on_gpu_launch) {
  auto run = [=](bool on_gpu, int dtype, std::int64_t n, const std::vector<std::uintptr_t>& operands,
                 std::uintptr_t segments, std::int64_t segment_count, std::uintptr_t state,
                 const std::vector<double>& params, std::uintptr_t out, std::uintptr_t partials, std::uintptr_t ticket,
                 std::uintptr_t stream, std::uintptr_t device_segments) {
    if (operands.size() != operand_count || params.size() > ncg::kMaxParams) {
      throw std::invalid_argument(std::string(name) + ": wrong number of operands or scalars");
    }
    ncg::Call call{};
    for (std::size_t k = 0; k < operands.size(); ++k) call.operand[k] = reinterpret_cast<void*>(operands[k]);
    for (std::size_t k = 0; k < params.size(); ++k) call.params[k] = params[k];
    call.table = {reinterpret_cast<const ncg::Segment*>(segments), segment_count};
    call.n = n;
    call.state = reinterpret_cast<ncg::CgState*>(state);
    call.out = reinterpret_cast<double*>(out);
    call.partials = reinterpret_cast<double*>(partials);
    call.ticket = reinterpret_cast<void*>(ticket);
    call.stream = reinterpret_cast<void*>(stream);
    call.device_segments = reinterpret_cast<const ncg::Segment*>(device_segments);
    const Launch launch = on_gpu ? on_gpu_launch : on_cpu_launch;
    const char* error = "this build has no CUDA engine";
    if (launch != nullptr) {
      const py::gil_scoped_release release;
      error = launch(static_cast<ncg::Dtype>(dtype), &call);
    }
    if (error != nullptr) throw std::runtime_error(std::string(name) + ": " + error);
  };
  module.def(name, run, py::arg("on_gpu"), py::arg("dtype"), py::arg("n"), py::arg("operands"), py::kw_only(),
             py::arg("segments") = 0, py::arg("segment_count") = 0, py::arg("state") = 0,
             py::arg("params") = std::vector<double>{}, py::arg("out") = 0, py::arg("partials") = 0,
             py::arg("ticket") = 0, py::arg("stream") = 0, py::arg("device_segments") = 0);
}

// name -> (vectors read, vectors written) by one call: what a benchmark counts bytes from
py::dict traffic() {
  py::dict vectors;
#define NCG_TRAFFIC(name, Functor) \
  vectors[#name] = py::make_tuple(int{ncg::Functor<float>::kReads}, int{ncg::Functor<float>::kWritten});
  NCG_OPERATIONS(NCG_TRAFFIC)
#undef NCG_TRAFFIC
  vectors["unpack"] = py::make_tuple(1, 1);
  return vectors;
}

// The operations whose first operand may be a table of tensors.
std::vector<std::string> take_tensors() {
  std::vector<std::string> names = {"unpack"};
#define NCG_TAKES_TENSORS(name, Functor) \
  if (ncg::Functor<float>::kTakesTable) names.push_back(#name);
  NCG_OPERATIONS(NCG_TAKES_TENSORS)
#undef NCG_TAKES_TENSORS
  return names;
}

std::vector<std::string> state_fields() {
  return {
#define NCG_NAME(name) #name,
      NCG_STATE_FIELDS(NCG_NAME)
#undef NCG_NAME
  };
}

// The loop of a solve in a CUDA graph; addresses are integers, as everywhere here.
std::uint64_t loop_open([[maybe_unused]] std::uintptr_t stream, [[maybe_unused]] std::uintptr_t body,
                        [[maybe_unused]] std::uintptr_t state) {
  const char* error = "this build has no CUDA engine";
  std::uint64_t handle = 0;
#ifdef NCG_WITH_CUDA
  error = ncg_cuda_loop_open(reinterpret_cast<void*>(stream), reinterpret_cast<void*>(body),
                             reinterpret_cast<ncg::CgState*>(state), &handle);
#endif
  if (error != nullptr) throw std::runtime_error(std::string("loop_open: ") + error);
  return handle;
}

void loop_close([[maybe_unused]] std::uintptr_t body, [[maybe_unused]] std::uintptr_t state,
                [[maybe_unused]] std::uint64_t handle) {
  const char* error = "this build has no CUDA engine";
#ifdef NCG_WITH_CUDA
  error = ncg_cuda_loop_close(reinterpret_cast<void*>(body), reinterpret_cast<ncg::CgState*>(state), handle);
#endif
  if (error != nullptr) throw std::runtime_error(std::string("loop_close: ") + error);
}

py::tuple cuda_status() {
#ifdef NCG_WITH_CUDA
  const char* why = "";
  const int count = ncg_cuda_device_count(&why);
  return py::make_tuple(std::string(ncg_cuda_version()), count, std::string(why));
#else
  return py::make_tuple(py::none(), 0, std::string("built without CUDA (no nvcc was found, or NCG_CUDA=OFF)"));
#endif
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native core of ncg_cuda: the fused operations on the CPU and, where built with CUDA, on the GPU.";
#ifdef NCG_WITH_CUDA
#define NCG_LAUNCHER(name) ncg_cuda_##name
#else
#define NCG_LAUNCHER(name) nullptr
#endif
#define NCG_BIND(name, Functor) \
  bind_operation(module, #name, ncg::Functor<float>::kVectors, &run_on_cpu_as<ncg::Functor>, NCG_LAUNCHER(name));
  NCG_OPERATIONS(NCG_BIND)
#undef NCG_BIND
  bind_operation(module, "unpack", 2, &unpack_on_cpu, NCG_LAUNCHER(unpack));
  bind_arrays(module);
  bind_yardsticks(module);
  module.def("partials_size", [](std::int64_t n, std::int64_t segment_count) {
#ifdef NCG_WITH_CUDA
    const std::int64_t table = ncg_cuda_table_bytes(segment_count) / static_cast<std::int64_t>(sizeof(double));
#else
    const std::int64_t table = 0 * segment_count;
#endif
    return ncg::partials_size(n) + table;
  });
  module.def("loop_open", &loop_open, py::arg("stream"), py::arg("body"), py::arg("state"));
  module.def("loop_close", &loop_close, py::arg("body"), py::arg("state"), py::arg("handle"));
  module.def("state_fields", &state_fields);
  module.def("take_tensors", &take_tensors);
  module.def("traffic", &traffic);
  module.def("cuda_status", &cuda_status);
  module.def("get_num_threads", [] { return num_threads; });
  module.def("set_num_threads", [](int threads) { num_threads = threads; });
  module.attr("CHUNK") = ncg::kChunk;
  module.attr("LANES") = ncg::kLanes;
  module.attr("INLINE_SEGMENTS") = ncg::kInlineSegments;
#ifdef _OPENMP
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
}
