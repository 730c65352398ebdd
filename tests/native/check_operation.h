// One operation: the emulated CUDA engine against plain float64 loops over the same functor's definition.
#pragma once

#include <cstring>
#include <vector>

#include "check_support.h"
#include "emulator.h"
#include "ncg/cuda/launch.h"

// Tensors at odd addresses, as a table of segments.
template <class F>
struct Tensors {
  std::vector<Buffer<F>> buffers;
  std::vector<ncg::Segment> segments;
  std::int64_t size = 0;

  explicit Tensors(const std::vector<std::int64_t>& lengths) {
    for (const std::int64_t length : lengths) {
      buffers.emplace_back(length, static_cast<std::int64_t>(rng() % 4));
      buffers.back().randomize();
      segments.push_back({buffers.back().at, size, length});
      size += (length + ncg::kLanes - 1) / ncg::kLanes * ncg::kLanes;
    }
  }
  std::int64_t count() const { return static_cast<std::int64_t>(segments.size()); }
};

template <class F>
constexpr ncg::Dtype dtype_of() {
  if (sizeof(F) == 2) return ncg::Dtype::kBfloat16First;
  return sizeof(F) == 4 ? ncg::Dtype::kFloat32 : ncg::Dtype::kFloat64;
}

// F: the type that operand 0 is stored in.
template <template <class> class Functor, class T, class F>
void check(const char* name, Launch launch, std::int64_t n, const std::vector<std::int64_t>& lengths,
           std::uint64_t seed) {
  using Op = Functor<T>;
  using Exact = Functor<double>;
  constexpr int K = Op::kVectors;
  ncg::Scalars scalars{{0.3, -0.7, 0.2, 0.5, 0.4, static_cast<double>(seed % 2)}, 0};
  Tensors<F> tensors(lengths);
  if (tensors.count() > 0) n = tensors.size;
  scalars.n = n;

  Buffer<F> first(tensors.count() > 0 ? 1 : n);
  first.randomize();
  std::vector<Buffer<T>> operands;
  std::vector<std::vector<double>> exact(K, std::vector<double>(static_cast<std::size_t>(n), 0.0));
  for (std::int64_t i = 0; tensors.count() == 0 && i < n; ++i) exact[0][i] = ncg::widen(first.at[i]);
  for (std::int64_t s = 0; s < tensors.count(); ++s) {
    const ncg::Segment& segment = tensors.segments[s];
    for (std::int64_t i = 0; i < segment.length; ++i)
      exact[0][segment.offset + i] = ncg::widen(tensors.buffers[s].at[i]);
  }
  for (int k = 0; k < K; ++k) {
    operands.emplace_back(k == 0 ? 1 : n);
    operands[k].randomize();
    for (std::int64_t s = 0; k > 0 && s < tensors.count(); ++s) {  // padding is zero
      const std::int64_t end = s + 1 < tensors.count() ? tensors.segments[s + 1].offset : n;
      for (std::int64_t i = tensors.segments[s].offset + tensors.segments[s].length; i < end; ++i)
        operands[k].at[i] = T(0);
    }
    for (std::int64_t i = 0; k > 0 && i < n; ++i) exact[k][i] = operands[k].at[i];
  }
  const Exact op = Exact::from_params(scalars);
  long double sums[ncg::kMaxSums] = {};  // a plain float64 sum would be the less exact of the two
  double scale = 1e-300;
  for (std::int64_t i = 0; i < n; ++i) {
    double v[K];
    for (int k = 0; k < K; ++k) scale += exact[k][i] * exact[k][i], v[k] = exact[k][i];
    double terms[ncg::kMaxSums] = {};
    op(v, terms);
    for (int m = 0; m < Op::kSums; ++m) sums[m] += terms[m];
    for (int k = K - Op::kWritten; k < K; ++k) {
      if (k != Op::kOptional || op.uses_optional()) exact[k][i] = v[k];
    }
    for (int k = 0; k < K; ++k) scale += v[k] * v[k];
  }

  const std::int64_t room = ncg::partials_size(n) + ncg_cuda_table_bytes(tensors.count()) / 8;
  Buffer<double> partials(room);
  for (std::int64_t i = 0; i < room; ++i) partials.at[i] = std::nan("");
  double out[ncg::kMaxSums];
  for (double& value : out) value = std::nan("");
  unsigned ticket[2] = {0, 0};
  ncg::Call call{};
  for (int k = 0; k < K; ++k) call.operand[k] = operands[k].at;
  call.operand[0] = first.at;
  call.table = {tensors.segments.data(), tensors.count()};
  call.n = n;
  for (int c = 0; c < ncg::kMaxParams; ++c) call.params[c] = scalars.at[c];
  call.out = out;
  call.partials = partials.at;
  call.ticket = ticket;
  emulator::set_seed(seed);
  const char* error = launch(dtype_of<F>(), &call);
  const std::string what = std::string(name) + (sizeof(F) == 2 ? " bfloat16" : "") +
                           (sizeof(T) == 4 ? " float32" : " float64") + ", n = " + std::to_string(n) +
                           ", tensors = " + std::to_string(lengths.size()) + ", seed " + std::to_string(seed);
  expect(error == nullptr, what + ": " + (error != nullptr ? error : ""));
  const double eps = sizeof(T) == 4 ? 1.2e-7 : 2.3e-16;
  for (int m = 0; m < Op::kSums; ++m) {
    expect(std::fabs(out[m] - static_cast<double>(sums[m])) <= 8 * eps * scale,
           what + ": sum " + std::to_string(m) + " is " + std::to_string(out[m]) + ", not " + std::to_string(sums[m]));
  }
  for (int k = K - Op::kWritten; k < K; ++k) {
    double worst = 0;
    for (std::int64_t i = 0; i < n; ++i) worst = std::fmax(worst, std::fabs(operands[k].at[i] - exact[k][i]));
    expect(worst <= 40 * eps, what + ": vector " + std::to_string(k) + " is off by " + std::to_string(worst));
  }
  expect(ticket[0] == 0, what + ": the ticket is not reset");

  // the same bits again, in another order of threads and blocks
  if (Op::kWritten == 0) {
    double again[ncg::kMaxSums] = {};
    call.out = again;
    emulator::set_seed(seed + 1000);
    launch(dtype_of<F>(), &call);
    expect(std::memcmp(out, again, Op::kSums * sizeof(double)) == 0,
           what + ": other bits in another order of execution");
  }
}

// Every type that an operation takes.
template <template <class> class Functor>
void check_types(const char* name, Launch launch, std::int64_t n, const std::vector<std::int64_t>& lengths,
                 std::uint64_t& seed) {
  if constexpr (!Functor<float>::kTakesTable) {
    if (!lengths.empty()) return;
  } else {
    check<Functor, float, ncg::Bfloat16>(name, launch, n, lengths, seed++);
  }
  check<Functor, float, float>(name, launch, n, lengths, seed++);
  check<Functor, double, double>(name, launch, n, lengths, seed++);
}

// Tensors from a flat vector, exactly.
template <class T>
void check_unpack(const std::vector<std::int64_t>& lengths, std::uint64_t seed) {
  Tensors<T> tensors(lengths);
  Buffer<T> flat(tensors.size);
  flat.randomize();
  Buffer<double> partials(ncg::partials_size(tensors.size) + ncg_cuda_table_bytes(tensors.count()) / 8);
  ncg::Call call{};
  call.operand[1] = flat.at;
  call.table = {tensors.segments.data(), tensors.count()};
  call.n = tensors.size;
  call.params[0] = 0.3;
  call.partials = partials.at;
  emulator::set_seed(seed);
  ncg_cuda_unpack(dtype_of<T>(), &call);
  std::int64_t wrong = 0;
  for (std::int64_t s = 0; s < tensors.count(); ++s) {
    for (std::int64_t i = 0; i < tensors.segments[s].length; ++i)
      wrong += tensors.buffers[s].at[i] != static_cast<T>(0.3) * flat.at[tensors.segments[s].offset + i];
  }
  expect(wrong == 0, "unpack: " + std::to_string(wrong) + " elements differ, seed " + std::to_string(seed));
}
