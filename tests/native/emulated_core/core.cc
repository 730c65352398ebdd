// The rest of an emulated ncg_cuda._core: what Python asks of the emulation, and what the emulator has no kernels for.
#include "ncg/cuda/graph/loop.h"
#include "queue.h"

#define NCG_EXPORT extern "C" __attribute__((visibility("default")))

NCG_EXPORT void ncg_emulated_hook(emulator::Hook hook) { emulator::hook = hook; }
NCG_EXPORT void ncg_emulated_seed(std::uint64_t seed) { emulator::set_seed(seed); }
NCG_EXPORT void ncg_emulated_run(std::int64_t work) { emulator::queued[static_cast<std::size_t>(work)](); }
NCG_EXPORT void ncg_emulated_forget() { emulator::queued.clear(); }

extern "C" {
const char* ncg_cuda_loop_open(void* stream, void* body, ncg::CgState* state, std::uint64_t* handle) {
  const std::int64_t answer = emulator::ask("loop_open", stream, reinterpret_cast<std::uintptr_t>(body),
                                            reinterpret_cast<std::uintptr_t>(state));
  *handle = answer < 0 ? 0 : static_cast<std::uint64_t>(answer);
  const int error = emulator::last_error();
  return error == 0 ? nullptr : emulator::error_text(error);
}

const char* ncg_cuda_loop_close(void* body, ncg::CgState*, std::uint64_t handle) {
  emulator::ask("loop_close", body, static_cast<std::uintptr_t>(handle));
  const int error = emulator::last_error();
  return error == 0 ? nullptr : emulator::error_text(error);
}
}

// bindings/yardsticks.cpp is for benchmarks only; pybind11's headers would cost seconds here
namespace pybind11 {
class module_;
}
void bind_yardsticks(pybind11::module_&) {}
