// What the checks of the emulated engine share: exact-size buffers, and expectations that are counted.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "ncg/call.h"

inline std::mt19937_64 rng(7);
inline int failures = 0;
inline int checks = 0;

inline void expect(bool ok, const std::string& what) {
  ++checks;
  if (!ok) {
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  }
}

inline void store(float& at, double value) { at = static_cast<float>(value); }
inline void store(double& at, double value) { at = value; }
inline void store(ncg::Bfloat16& at, double value) {  // the upper half: truncated, which is as good a number as any
  const auto narrow = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  at.bits = static_cast<std::uint16_t>(bits >> 16);
}

// Exactly n elements, 16-byte aligned as operands of the engine are, plus `skew` elements before them.
template <class T>
struct Buffer {
  std::unique_ptr<char, decltype(&std::free)> memory{nullptr, &std::free};
  T* at = nullptr;
  std::int64_t n = 0;

  explicit Buffer(std::int64_t size, std::int64_t skew = 0) : n(size) {
    char* raw = nullptr;
    if (posix_memalign(reinterpret_cast<void**>(&raw), 16, static_cast<std::size_t>(size + skew) * sizeof(T)) != 0)
      std::abort();
    memory.reset(raw);
    at = reinterpret_cast<T*>(raw) + skew;
  }
  void randomize() {
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < n; ++i) store(at[i], normal(rng));
  }
};

struct Serial {
  template <class F>
  void operator()(std::int64_t count, const F& f) const {
    f(std::int64_t{0}, count);
  }
};

using Launch = const char* (*)(ncg::Dtype, const ncg::Call*);
