// A whole solve by passes with a state block, emulated and on the CPU engine: the same stop, the same x to rounding.
#pragma once

#include <vector>

#include "check_operation.h"
#include "ncg/cpu/engine.h"

enum class Kind { kPlain, kDeferred, kPreconditioned };

template <class T>
class Solve {
 public:
  Solve(Kind kind, bool emulated, const std::vector<double>& diagonal, const std::vector<T>& b, std::uint64_t seed)
      : kind_(kind),
        emulated_(emulated),
        n_(static_cast<std::int64_t>(b.size())),
        seed_(seed),
        b_(n_),
        m_(n_),
        x_(n_),
        r_(n_),
        p_(n_),
        hp_(n_),
        partials_(ncg::partials_size(n_)) {
    for (std::int64_t i = 0; i < n_; ++i) {
      b_.at[i] = b[i];
      m_.at[i] = static_cast<T>(1.0 / (1.0 + std::fabs(diagonal[i])));
      x_.at[i] = r_.at[i] = p_.at[i] = static_cast<T>(std::nan(""));
    }
  }

  // Past the stop on purpose: passes that find the flag set must do nothing.
  void run(const std::vector<double>& diagonal, int iterations) {
    const double limits[] = {0.1, 1e-5, 40.0};  // tau, cg_tol, max_iter
    for (int c = 0; c < 3; ++c) params_[c] = limits[c];
    pass<ncg::Magnitude>(&ncg_cuda_magnitude, {b_.at});
    if (kind_ == Kind::kPreconditioned) {
      pass<ncg::PreconditionedBegin>(&ncg_cuda_preconditioned_begin, {b_.at, m_.at, x_.at, r_.at, p_.at});
    } else {
      pass<ncg::CgBegin>(&ncg_cuda_cg_begin, {b_.at, x_.at, r_.at, p_.at});
    }
    for (int k = 0; k < iterations; ++k) {
      for (std::int64_t i = 0; i < n_; ++i) hp_.at[i] = static_cast<T>(diagonal[i]) * p_.at[i];
      if (kind_ == Kind::kPreconditioned) {
        pass<ncg::PreconditionedCurvature>(&ncg_cuda_preconditioned_curvature, {hp_.at, p_.at, m_.at});
        pass<ncg::PreconditionedUpdate>(&ncg_cuda_preconditioned_update, {hp_.at, m_.at, x_.at, r_.at, p_.at});
        continue;
      }
      pass<ncg::DampedCurvature>(&ncg_cuda_damped_curvature, {hp_.at, p_.at});
      if (kind_ == Kind::kDeferred) {
        pass<ncg::CgUpdateDeferred>(&ncg_cuda_cg_update_deferred, {hp_.at, x_.at, r_.at, p_.at});
      } else {
        pass<ncg::CgUpdate>(&ncg_cuda_cg_update, {hp_.at, x_.at, r_.at, p_.at});
      }
    }
    pass<ncg::CgFinish>(&ncg_cuda_cg_finish, {r_.at, p_.at, x_.at});
  }

  const ncg::CgState& state() const { return state_; }
  T x(std::int64_t i) const { return x_.at[i]; }

 private:
  template <template <class> class Functor>
  void pass(Launch launch, std::initializer_list<T*> operands) {
    using Op = Functor<T>;
    ncg::Call call{};
    int k = 0;
    for (T* operand : operands) call.operand[k++] = operand;
    call.n = n_;
    call.state = &state_;
    call.partials = partials_.at;
    call.ticket = ticket_;
    for (int c = 0; c < ncg::kMaxParams; ++c) call.params[c] = params_[c];
    if (emulated_) {
      emulator::set_seed(seed_++);
      launch(dtype_of<T>(), &call);
    } else {
      ncg::with_driver<Op>(call, [&](const auto& driver) {
        ncg::cpu::run<Op, T>(ncg::vectors_of<Op>(call), n_, driver, partials_.at, Serial{});
      });
    }
  }

  Kind kind_;
  bool emulated_;
  std::int64_t n_;
  std::uint64_t seed_;
  Buffer<T> b_, m_, x_, r_, p_, hp_;
  Buffer<double> partials_;
  ncg::CgState state_{};
  unsigned ticket_[2] = {0, 0};
  double params_[ncg::kMaxParams] = {};
};

// (diag(d) + 0.1) x = b with d in [1 + shift, 6 + shift], and b near `size`.
template <class T>
void check_solve(Kind kind, std::int64_t n, double shift, double size, std::uint64_t seed) {
  std::vector<double> diagonal(static_cast<std::size_t>(n));
  std::vector<T> b(static_cast<std::size_t>(n));
  for (auto& d : diagonal) d = 1.0 + shift + static_cast<double>(rng() % 1000) / 200.0;
  for (auto& v : b) v = static_cast<T>(size * (static_cast<double>(rng() % 2001) / 1000.0 - 1.0));
  Solve<T> emulated(kind, true, diagonal, b, seed), cpu(kind, false, diagonal, b, seed);
  emulated.run(diagonal, 41);
  cpu.run(diagonal, 41);
  const std::string what = "solve of kind " + std::to_string(static_cast<int>(kind)) + ", n = " + std::to_string(n) +
                           ", shift " + std::to_string(shift) + ", size " + std::to_string(size);
  const double stop = emulated.state().stop;
  expect(stop != 0 && stop == cpu.state().stop,
         what + ": stop " + std::to_string(stop) + " and " + std::to_string(cpu.state().stop));
  expect(std::fabs(emulated.state().iteration - cpu.state().iteration) <= 1, what + ": iterations differ");
  double worst = 0, wrong = 0, largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    worst = std::fmax(worst, std::fabs(static_cast<double>(emulated.x(i)) - cpu.x(i)));
    wrong = std::fmax(wrong, std::fabs((diagonal[i] + 0.1) * emulated.x(i) - b[i]));
    largest = std::fmax(largest, std::fabs(static_cast<double>(cpu.x(i))));
  }
  expect(worst <= 1e-4 * largest, what + ": x differs by " + std::to_string(worst / largest));
  if (shift >= 0) expect(wrong <= 1e-3 * size, what + ": the residual is " + std::to_string(wrong / size));
}
