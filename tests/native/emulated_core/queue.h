// Hands the engine's launches, copies and loops to whoever keeps the streams: the fake CuPy, by one function pointer.
#pragma once

#include <cstdint>
#include <functional>
#include <tuple>
#include <vector>

#include "emulator.h"

namespace emulator {

// what: "launch" (a: number of the work), "copy" (a: target, b: source, c: bytes), "loop_open" (a: body, b: state) or
// "loop_close" (stream: body). Returns 0 or a handle; below 0: minus a CUDA error.
using Hook = std::int64_t (*)(const char* what, void* stream, std::uintptr_t a, std::uintptr_t b, std::int64_t c);

inline Hook hook = nullptr;
inline std::vector<std::function<void()>> queued;
inline int error = 0;

inline int last_error() {
  const int last = error;
  error = 0;
  return last;
}

inline std::int64_t ask(const char* what, void* stream, std::uintptr_t a, std::uintptr_t b = 0, std::int64_t c = 0) {
  const std::int64_t answer = hook == nullptr ? -1 : hook(what, stream, a, b, c);
  if (answer < 0) error = static_cast<int>(-answer);
  return answer;
}

template <class Kernel, class... Arguments>
int queue_launch(unsigned blocks, unsigned threads, void* stream, const Kernel& kernel, const Arguments&... arguments) {
  queued.push_back(
      [=, given = std::make_tuple(arguments...)] { launch(blocks, threads, [&] { std::apply(kernel, given); }); });
  ask("launch", stream, queued.size() - 1);
  return last_error();
}

inline int queue_copy(void* to, const void* from, std::size_t bytes, void* stream) {
  ask("copy", stream, reinterpret_cast<std::uintptr_t>(to), reinterpret_cast<std::uintptr_t>(from),
      static_cast<std::int64_t>(bytes));
  return last_error();
}

inline const char* error_text(int code) {
  switch (code) {
    case 400:
      return "invalid resource handle";
    case 401:
      return "the operation cannot be performed in the present state";
    case 900:
      return "operation not permitted when stream is capturing";
    default:
      return "unknown error";
  }
}

}  // namespace emulator
