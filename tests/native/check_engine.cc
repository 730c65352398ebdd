// Runs the CUDA engine's own sources in the emulator and compares every operation with plain float64 loops.
//
//   check_engine [--quick] [--seed N]
//
// Every operand is a heap block of exactly its size, aligned to no more than CUDA guarantees, so that a sanitizer sees
// each access outside it. Exits with 1 and says what differs.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulator.h"
#include "ncg/cpu/engine.h"
#include "ncg/cuda/launch.h"

namespace {

std::mt19937_64 rng(7);
int failures = 0;
int checks = 0;

template <class T>
struct Buffer {  // exactly n elements, 16-byte aligned as operands of the engine are, plus `skew` elements before them
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
    for (std::int64_t i = 0; i < n; ++i) at[i] = static_cast<T>(normal(rng));
  }
};

struct Serial {
  template <class F>
  void operator()(std::int64_t count, const F& f) const {
    f(std::int64_t{0}, count);
  }
};

void expect(bool ok, const std::string& what) {
  ++checks;
  if (!ok) {
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  }
}

// One call by the emulated CUDA engine and one by float64 loops over the same functor's definition.
template <template <class> class Functor, class T>
void check(const char* name, const char* (*launch)(ncg::Dtype, const ncg::Call*), std::int64_t n,
           const std::vector<std::int64_t>& lengths, std::uint64_t seed) {
  using Op = Functor<T>;
  using Exact = Functor<double>;
  constexpr int K = Op::kVectors;
  const double params[ncg::kMaxParams] = {0.3, -0.7, 0.2, 0.5};

  // operand 0 as a table of tensors at odd addresses, if lengths are given
  std::vector<Buffer<T>> tensors;
  std::vector<ncg::Segment> segments;
  std::int64_t offset = 0;
  for (const std::int64_t length : lengths) {
    tensors.emplace_back(length, static_cast<std::int64_t>(rng() % 4));
    tensors.back().randomize();
    segments.push_back({tensors.back().at, offset, length});
    offset += (length + ncg::kLanes - 1) / ncg::kLanes * ncg::kLanes;
  }
  if (!lengths.empty()) n = offset;

  std::vector<Buffer<T>> operands;
  std::vector<std::vector<double>> exact(K);
  for (int k = 0; k < K; ++k) {
    operands.emplace_back(k == 0 && !lengths.empty() ? 1 : n);
    operands.back().randomize();
    if (k > 0 && !lengths.empty()) {  // padding is zero
      for (std::size_t s = 0; s < segments.size(); ++s) {
        const std::int64_t end = s + 1 < segments.size() ? segments[s + 1].offset : n;
        for (std::int64_t i = segments[s].offset + segments[s].length; i < end; ++i) operands[k].at[i] = T(0);
      }
    }
    exact[k].assign(static_cast<std::size_t>(n), 0.0);
    if (k == 0 && !lengths.empty()) {
      for (std::size_t s = 0; s < segments.size(); ++s) {
        for (std::int64_t i = 0; i < segments[s].length; ++i) exact[0][segments[s].offset + i] = tensors[s].at[i];
      }
    } else {
      for (std::int64_t i = 0; i < n; ++i) exact[k][i] = operands[k].at[i];
    }
  }
  const Exact op = Exact::from_params(params);
  long double sums[ncg::kMaxSums] = {};  // a plain float64 sum would be the less exact of the two
  double scale = 1e-300;
  for (std::int64_t i = 0; i < n; ++i) {
    double v[K];
    for (int k = 0; k < K; ++k) scale += exact[k][i] * exact[k][i], v[k] = exact[k][i];
    double terms[ncg::kMaxSums] = {};
    op(v, terms);
    for (int m = 0; m < Op::kSums; ++m) sums[m] += terms[m];
    for (int k = K - Op::kWritten; k < K; ++k) exact[k][i] = v[k];
    for (int k = 0; k < K; ++k) scale += v[k] * v[k];
  }

  const std::int64_t room =
      ncg::partials_size(n) + ncg_cuda_table_bytes(static_cast<std::int64_t>(segments.size())) / 8;
  Buffer<double> partials(room);
  for (std::int64_t i = 0; i < room; ++i) partials.at[i] = std::nan("");
  double out[ncg::kMaxSums];
  for (double& value : out) value = std::nan("");
  unsigned ticket[2] = {0, 0};
  ncg::Call call{};
  for (int k = 0; k < K; ++k) call.operand[k] = operands[k].at;
  call.table = {segments.data(), static_cast<std::int64_t>(segments.size())};
  call.n = n;
  for (int c = 0; c < ncg::kMaxParams; ++c) call.params[c] = params[c];
  call.out = out;
  call.partials = partials.at;
  call.ticket = ticket;
  emulator::set_seed(seed);
  const char* error = launch(sizeof(T) == 4 ? ncg::Dtype::kFloat32 : ncg::Dtype::kFloat64, &call);
  const std::string what = std::string(name) + (sizeof(T) == 4 ? " float32" : " float64") +
                           ", n = " + std::to_string(n) + ", tensors = " + std::to_string(lengths.size()) + ", seed " +
                           std::to_string(seed);
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
    launch(sizeof(T) == 4 ? ncg::Dtype::kFloat32 : ncg::Dtype::kFloat64, &call);
    expect(std::memcmp(out, again, Op::kSums * sizeof(double)) == 0,
           what + ": other bits in another order of execution");
  }
}

// A whole solve by passes with a state block, emulated and on the CPU engine: the same stop, the same x to rounding.
template <class T>
void check_solve(std::int64_t n, double shift, std::uint64_t seed) {
  std::vector<double> diagonal(static_cast<std::size_t>(n));
  std::vector<T> b(static_cast<std::size_t>(n));
  for (auto& d : diagonal) d = 1.0 + shift + static_cast<double>(rng() % 1000) / 200.0;
  for (auto& v : b) v = static_cast<T>(static_cast<double>(rng() % 2001) / 1000.0 - 1.0);
  std::vector<T> solution[2];
  ncg::CgState states[2] = {};
  for (int engine = 0; engine < 2; ++engine) {
    ncg::CgState& s = states[engine];
    s.tau = 0.1;
    s.cg_tol = 1e-5;
    s.max_iter = 40;
    s.eps = sizeof(T) == 4 ? 1.1920929e-7 : 2.220446e-16;
    s.largest = sizeof(T) == 4 ? 3.4e38 : 1.7e308;
    Buffer<T> x(n), r(n), p(n), hp(n);
    Buffer<double> partials(ncg::partials_size(n));
    for (std::int64_t i = 0; i < n; ++i) x.at[i] = T(0), r.at[i] = p.at[i] = b[i];
    unsigned ticket[2] = {0, 0};
    const auto type = sizeof(T) == 4 ? ncg::Dtype::kFloat32 : ncg::Dtype::kFloat64;
    ncg::Call call{};
    call.n = n;
    call.state = &s;
    call.partials = partials.at;
    call.ticket = ticket;
    auto run = [&](auto functor, const char* (*launch)(ncg::Dtype, const ncg::Call*),
                   std::initializer_list<T*> operands) {
      using Op = decltype(functor);
      int k = 0;
      for (T* operand : operands) call.operand[k++] = operand;
      if (engine == 0) {
        emulator::set_seed(seed++);
        launch(type, &call);
      } else {
        ncg::cpu::run<Op, T>(ncg::vectors_of<Op>(call), n, ncg::InSolve<Op>{&s}, partials.at, Serial{});
      }
    };
    run(ncg::Dots<T>{}, &ncg_cuda_dots, {r.at, r.at});
    for (int k = 0; k < 41; ++k) {  // past the stop: passes that find the flag set must do nothing
      for (std::int64_t i = 0; i < n; ++i) hp.at[i] = static_cast<T>(diagonal[i]) * p.at[i];
      run(ncg::DampedCurvature<T>{}, &ncg_cuda_damped_curvature, {hp.at, p.at});
      run(ncg::CgUpdate<T>{}, &ncg_cuda_cg_update, {hp.at, x.at, r.at, p.at});
    }
    solution[engine].assign(x.at, x.at + n);
  }
  const std::string what = "solve, n = " + std::to_string(n) + ", shift " + std::to_string(shift);
  expect(states[0].stop != 0 && states[0].stop == states[1].stop,
         what + ": stop " + std::to_string(states[0].stop) + " and " + std::to_string(states[1].stop));
  expect(std::fabs(states[0].iteration - states[1].iteration) <= 1, what + ": iterations differ");
  double worst = 0, largest = 1e-30;
  for (std::int64_t i = 0; i < n; ++i) {
    worst = std::fmax(worst, std::fabs(static_cast<double>(solution[0][i]) - solution[1][i]));
    largest = std::fmax(largest, std::fabs(static_cast<double>(solution[1][i])));
  }
  expect(worst <= 1e-4 * largest, what + ": x differs by " + std::to_string(worst));
}

std::vector<std::int64_t> random_lengths(int count, std::int64_t longest) {
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < count; ++i) {
    const std::int64_t limit = static_cast<std::int64_t>(
        std::pow(10.0, static_cast<double>(rng() % 1000) / 1000.0 * std::log10(static_cast<double>(longest))));
    lengths.push_back(limit < 1 ? 1 : limit);
  }
  return lengths;
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false;
  std::uint64_t seed = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--quick") quick = true;
    if (std::string(argv[i]) == "--seed" && i + 1 < argc) seed = std::strtoull(argv[++i], nullptr, 10);
  }
  rng.seed(seed);
  const std::vector<std::int64_t> quick_sizes = {1, 3, 17, 255, 4096, 4097, 9001};
  const std::vector<std::int64_t> all_sizes = {1,   2,   3,    4,    5,    15,   16,   17,   31,   127,    255,
                                               256, 257, 1023, 4095, 4096, 4097, 8191, 8192, 8193, 100'003};
  std::vector<std::vector<std::int64_t>> tables = {{1}, {5, 1, 17}, {16, 16}, {4093, 7, 300}, {0, 3, 0, 40}};
  for (int count : {2, 9, 161, 162, 400}) tables.push_back(random_lengths(count, count > 100 ? 60 : 6000));
  if (!quick) {
    tables.push_back(random_lengths(40, 100'000));
    tables.push_back(std::vector<std::int64_t>(700, 1));
  }
  for (const std::int64_t n : quick ? quick_sizes : all_sizes) {
#define NCG_CHECK(name, Functor, in_solve)                            \
  check<ncg::Functor, float>(#name, &ncg_cuda_##name, n, {}, seed++); \
  check<ncg::Functor, double>(#name, &ncg_cuda_##name, n, {}, seed++);
    NCG_OPERATIONS(NCG_CHECK)
#undef NCG_CHECK
  }
  for (const auto& lengths : tables) {
#define NCG_CHECK(name, Functor, in_solve)                                 \
  check<ncg::Functor, float>(#name, &ncg_cuda_##name, 0, lengths, seed++); \
  check<ncg::Functor, double>(#name, &ncg_cuda_##name, 0, lengths, seed++);
    NCG_OPERATIONS(NCG_CHECK)
#undef NCG_CHECK
  }
  check_solve<float>(quick ? 777 : 9001, 0.0, seed);
  check_solve<double>(777, 0.0, seed);
  check_solve<float>(777, -3.0, seed);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
