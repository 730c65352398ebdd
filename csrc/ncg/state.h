// The scalars of one CG solve, and what happens to them between the passes. One definition for CPU and GPU.
//
// The block is an array of float64 with named places: NumPy, CuPy and TensorFlow hold it as a float64 vector of length
// kStateSize, wherever the vectors of the solve live. ncg_cuda/reference.py has the same transitions in Python.
#pragma once

#include <cfloat>
#include <cmath>

#include "ncg/macros.h"

namespace ncg {

enum class StopReason : int {
  kRunning = 0,
  kConverged = 1,
  kMaxIter = 2,
  kNegativeCurvature = 3,
  kBreakdown = 4,
  kStagnated = 5,  // set by the caller, who verifies a claim of convergence by one more product
};

// clang-format off
#define NCG_STATE_FIELDS(X)                                                                        \
  /* set by the caller before the solve */                                                         \
  X(tau)          /* damping */                                                                    \
  X(cg_tol)       /* stop when |r| <= cg_tol |b| */                                                \
  X(max_iter)                                                                                      \
  X(eps)          /* machine epsilon of the vectors' type */                                       \
  X(largest)      /* largest finite number of the vectors' type */                                 \
  /* kept by the passes */                                                                         \
  X(stop)         /* StopReason */                                                                 \
  X(iteration)    /* finished iterations */                                                        \
  X(rr)           /* r.r, recomputed by pass B */                                                  \
  X(bb)           /* b.b */                                                                        \
  X(tol_rr)       /* max(cg_tol, eps)^2 bb */                                                      \
  X(pq)           /* of the last pass A, as are qq and pp */                                       \
  X(qq)                                                                                            \
  X(pp)                                                                                            \
  X(alpha_x)      /* step of x */                                                                  \
  X(alpha_r)      /* step of r: the same; 0: there is no step to take */                           \
  X(beta)                                                                                          \
  X(rz_predicted) /* alpha^2 q.M^-1 q - rz */                                                      \
  X(drift)        /* largest |recomputed - predicted| / max(rz before, rz after) so far */         \
  X(pending)      /* StopReason that takes effect after this pass B */                             \
  X(rr_first)     /* r.r at the start */                                                           \
  X(products)     /* passes A so far */                                                            \
  X(rz)           /* r.z of the preconditioned residual z = M^-1 r; rr where there is no M */      \
  X(deferred)     /* x is still to be moved by deferred (p - r); 0: x is up to date */             \
  X(scale)        /* power of two by which b and x are multiplied during the solve */              \
  X(q_scale)      /* power of two by which pass A multiplies q before it squares it */             \
  X(reach)        /* bound on the largest |x_i - x0_i| so far */
// clang-format on

struct CgState {
#define NCG_DECLARE(name) double name;
  NCG_STATE_FIELDS(NCG_DECLARE)
#undef NCG_DECLARE
};

constexpr int kStateSize = static_cast<int>(sizeof(CgState) / sizeof(double));
static_assert(kStateSize == 26, "the length is part of the interface");

// p.q counts as not positive if it is at most this many machine epsilons of |p| |q|: scale-free, a few roundings above
// 0.
constexpr double kCurvatureGuard = 8.0;

NCG_HD double as_double(StopReason reason) { return static_cast<double>(static_cast<int>(reason)); }

NCG_HD bool is_finite(double v) { return v - v == 0.0; }

// The power of two that brings numbers of this mean size near 1; 1 where sums of squares are safe as they are (in
// float32 between 5e-7 and 2e6), also those of products with a matrix of the same size: a loss times 1e6 has gradients
// and curvatures times 1e6. Neither it nor its inverse leaves the range of normal numbers.
NCG_HD double choose_scale(double mean, double largest) {
  const int limit = std::ilogb(largest);  // 127 for float32
  if (mean == 0.0) return 1.0;
  if (!is_finite(mean)) return std::ldexp(1.0, 8 - limit);  // the sum overflowed, or b is not finite, which begin sees
  const int exponent = std::ilogb(mean);
  if (-limit / 6 <= exponent && exponent <= limit / 6) return 1.0;
  const int wanted = -exponent;
  return std::ldexp(1.0, wanted > limit - 2 ? limit - 2 : (wanted < 2 - limit ? 2 - limit : wanted));
}

// The power of two that brings products of this mean square near 1; 1 where their squares are safe as they are (in
// float32 products between 5e-15 and 2e14). The square itself may be 0 or infinite, so it cannot say how far to go: the
// powers map all that overflows, and all that vanishes, into the safe range.
NCG_HD double choose_q_scale(double mean_square, double largest) {
  const int limit = std::ilogb(largest);
  if (mean_square > std::ldexp(1.0, 3 * limit / 4)) return std::ldexp(1.0, -5 * limit / 8);
  if (mean_square < std::ldexp(1.0, -3 * limit / 4)) return std::ldexp(1.0, 3 * limit / 4);
  return 1.0;
}

// Before the first iteration: what r.z, r.r and b.b say. Without a preconditioner rz = rr.
NCG_HD void begin(CgState& s, double rz, double rr, double bb) {
  s.rz = rz;
  s.rr = s.rr_first = rr;
  s.bb = bb;
  // A recursive residual below eps |b| is rounding: going on, its directions nearly cancel and the solve runs away.
  const double tol = s.cg_tol > s.eps ? s.cg_tol : s.eps;
  s.tol_rr = tol * tol * bb;
  if (!is_finite(rz) || !is_finite(rr) || !is_finite(bb)) {
    s.stop = as_double(StopReason::kBreakdown);
  } else if (rr <= s.tol_rr) {
    s.stop = as_double(StopReason::kConverged);
  } else if (s.max_iter < 1.0) {
    s.stop = as_double(StopReason::kMaxIter);
  } else if (rz <= 0.0) {  // M is not positive definite
    s.stop = as_double(StopReason::kBreakdown);
  }
}

// After pass A. r.q = p.q in CG, so the next r.r is predicted as alpha^2 qq - rr, and beta is known before pass B,
// which can then update x, r and p together (Rupp et al., ACM TOMS 2016). Pass B recomputes r.r for the next alpha:
// without that, float32 diverges (Chen and Carson, SISC 2020). With a preconditioner M the identity is another one:
// r.z is predicted as alpha^2 q.M^-1 q - rz (`qmq`; without M it is qq).
//
// The sums are those of q_scale q, over n elements; everything after the first lines is in units of q.
NCG_HD void after_curvature(CgState& s, double pq, double qmq, double qq, double pp, double n) {
  s.products += 1.0;
  s.pq = pq / s.q_scale;
  s.qq = qq / s.q_scale / s.q_scale;
  s.pp = pp;
  s.alpha_x = s.alpha_r = s.beta = 0.0;
  if (s.iteration == 0.0 && s.q_scale == 1.0) {
    s.q_scale = choose_q_scale(qq / n, s.largest);
    if (s.q_scale != 1.0) return;  // no step: the same product again, with other squares
  }
  if (!is_finite(pq) || !is_finite(qmq) || !is_finite(qq) || !is_finite(pp)) {
    s.stop = as_double(StopReason::kBreakdown);
    return;
  }
  const double floor = kCurvatureGuard * s.eps * std::sqrt(pp) * std::sqrt(qq);
  const bool positive = pq > floor;
  // Keep the last x; before the first step there is none, so take steepest descent scaled by |curvature|.
  const double curvature = positive ? pq : (std::fabs(pq) > floor ? std::fabs(pq) : floor);
  if (!positive && (s.iteration > 0.0 || curvature == 0.0)) {
    s.stop = as_double(StopReason::kNegativeCurvature);
    return;
  }
  const double step = s.rz / curvature;  // in units of q_scale q
  const double alpha = step * s.q_scale;
  const double reach = s.reach + alpha * std::sqrt(pp);
  // A step that might leave the numbers of the vectors' type is not taken: x stays finite, in the caller's units, too.
  const bool fits = alpha <= s.largest && reach <= s.largest * (s.scale < 1.0 ? s.scale : 1.0);
  if (!positive) {
    s.stop = fits ? 0.0 : as_double(StopReason::kNegativeCurvature);
    if (!fits) return;
    s.pending = as_double(StopReason::kNegativeCurvature);
  } else {
    const double predicted = step * step * qmq - s.rz;
    const double beta = predicted > 0.0 ? predicted / s.rz : 0.0;
    if (!(fits && beta <= s.largest && is_finite(predicted))) {
      s.stop = as_double(StopReason::kBreakdown);
      return;
    }
    s.beta = beta;
    s.rz_predicted = predicted;
  }
  s.alpha_x = s.alpha_r = alpha;
  s.reach = reach;
}

// Whether pass B has anything to do.
NCG_HD bool takes_step(const CgState& s) { return s.stop == 0.0 && s.alpha_r != 0.0; }

// After pass B, with the recomputed r.z and r.r.
NCG_HD void after_update(CgState& s, double rz, double rr) {
  s.iteration += 1.0;
  if (!is_finite(rz) || !is_finite(rr)) {
    s.stop = as_double(StopReason::kBreakdown);
    return;
  }
  if (s.pending != 0.0) {
    s.rz = rz;
    s.rr = rr;
    s.stop = s.pending;
    return;
  }
  // A symmetric, constant matvec predicts rz to rounding: the largest miss is a free alarm for one that is not.
  const double miss = std::fabs(rz - s.rz_predicted) / (s.rz > rz ? s.rz : rz);
  if (miss > s.drift) s.drift = miss;
  s.rz = rz;
  s.rr = rr;
  if (rr <= s.tol_rr) {
    s.stop = as_double(StopReason::kConverged);
  } else if (s.iteration >= s.max_iter) {
    s.stop = as_double(StopReason::kMaxIter);
  } else if (rz <= 0.0) {
    s.stop = as_double(StopReason::kBreakdown);
  }
}

// Below this beta, p - r has lost too many digits of beta times the old p to give its step back: no deferring.
constexpr double kDeferrableBeta = 1e-2;

// Whether pass B moves x now, rather than leave the step to the next one, which can rebuild the old p as (p - r) /
// beta.
NCG_HD bool moves_x(const CgState& s) {
  return s.deferred != 0.0 || !(s.beta >= kDeferrableBeta) || !(s.alpha_x / s.beta <= s.largest) || s.pending != 0.0 ||
         s.iteration + 1.0 >= s.max_iter;
}

// After the last pass of a solve: its driver may have made a pass A that took no step, and then runs out of iterations.
NCG_HD void finished(CgState& s) {
  s.deferred = 0.0;
  if (s.stop == 0.0) s.stop = as_double(StopReason::kMaxIter);
}

}  // namespace ncg
