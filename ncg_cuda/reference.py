"""Every operation in float64 NumPy: the specification that the native engines are tested against.

This file is written to be read beside the textbook, not to be fast. Arrays may have any real dtype; everything is
computed in float64. Symbols: ``hp`` is the product H·p, ``q = hp + tau p`` the damped product, ``r`` the residual
``b - (H + tau I) x``, ``rr = r·r``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .state import StopReason

Vector = NDArray[np.float64]

CURVATURE_GUARD = 8.0
"""p·q counts as not positive if it is at most CURVATURE_GUARD * eps * |p| |q|: scale-free, a few roundings above 0."""


def _f64(a: ArrayLike) -> Vector:
    return np.asarray(a, dtype=np.float64).ravel()


def dots(a: ArrayLike, b: ArrayLike, scale_a: float = 1.0, scale_b: float = 1.0) -> tuple[float, float, float]:
    """The three sums a·b, a·a, b·b of scale_a a and scale_b b."""
    a, b = scale_a * _f64(a), scale_b * _f64(b)
    return float(a @ b), float(a @ a), float(b @ b)


def damped_curvature(hp: ArrayLike, p: ArrayLike, tau: float = 0.0) -> tuple[float, float, float]:
    """Pass A: p·q, q·q, p·p with q = hp + tau p."""
    hp, p = _f64(hp), _f64(p)
    q = hp + tau * p
    return float(p @ q), float(q @ q), float(p @ p)


def cg_update(
    x: ArrayLike,
    r: ArrayLike,
    p: ArrayLike,
    hp: ArrayLike,
    *,
    alpha_x: float,
    alpha_r: float,
    beta: float,
    tau: float = 0.0,
) -> tuple[Vector, Vector, Vector, float]:
    """Pass B: x + alpha_x p, r - alpha_r q, p' = r' + beta p, and r'·r' (recomputed, not predicted)."""
    x, r, p, hp = _f64(x), _f64(r), _f64(p), _f64(hp)
    q = hp + tau * p
    x_new = x + alpha_x * p
    r_new = r - alpha_r * q
    p_new = r_new + beta * p
    return x_new, r_new, p_new, float(r_new @ r_new)


def cg_update_deferred(
    x: ArrayLike,
    r: ArrayLike,
    p: ArrayLike,
    hp: ArrayLike,
    *,
    alpha_x: float,
    alpha_r: float,
    beta: float,
    tau: float = 0.0,
    deferred: float = 0.0,
    x_moves: bool = True,
) -> tuple[Vector, Vector, Vector, float]:
    """Pass B that moves x only where ``x_moves``, then by the step it missed before, too: deferred (p - r)."""
    x, r, p = _f64(x), _f64(r), _f64(p)
    _, r_new, p_new, rr = cg_update(x, r, p, hp, alpha_x=alpha_x, alpha_r=alpha_r, beta=beta, tau=tau)
    return x + deferred * (p - r) + alpha_x * p if x_moves else x, r_new, p_new, rr


def magnitude(a: ArrayLike) -> float:
    """The sum of the absolute values."""
    return float(np.abs(_f64(a)).sum())


def cg_begin(b: ArrayLike, scale: float = 1.0) -> tuple[Vector, Vector, Vector, float]:
    """X = 0, r = p = scale b, and r·r."""
    r = scale * _f64(b)
    return np.zeros_like(r), r, r.copy(), float(r @ r)


def cg_begin_from(b: ArrayLike, x0: ArrayLike, scale: float = 1.0) -> tuple[Vector, Vector, Vector]:
    """X = p = scale x0, r = scale b: what a product and a pass B with alpha_r = 1 make the residual of x0."""
    x = scale * _f64(x0)
    return x, scale * _f64(b), x.copy()


def cg_restart(b: ArrayLike, r: ArrayLike, p: ArrayLike, scale: float = 1.0) -> tuple[float, float, float]:
    """The sums r·p, r·r and b·b, the last times scale²."""
    b, r, p = scale * _f64(b), _f64(r), _f64(p)
    return float(r @ p), float(r @ r), float(b @ b)


def cg_finish(x: ArrayLike, r: ArrayLike, p: ArrayLike, *, deferred: float = 0.0, inverse_scale: float = 1.0) -> Vector:
    """(x + deferred (p - r)) inverse_scale: the step that x still missed, and the caller's units."""
    return (_f64(x) + deferred * (_f64(p) - _f64(r))) * inverse_scale


def preconditioned_begin(b: ArrayLike, m: ArrayLike, scale: float = 1.0) -> tuple[Vector, Vector, Vector, float, float]:
    """X = 0, r = scale b, p = z = m r (m: the diagonal of M⁻¹); the sums r·z, r·r."""
    r = scale * _f64(b)
    z = _f64(m) * r
    return np.zeros_like(r), r, z, float(r @ z), float(r @ r)


def preconditioned_curvature(
    hp: ArrayLike, p: ArrayLike, m: ArrayLike, tau: float = 0.0
) -> tuple[float, float, float, float]:
    """Pass A with a preconditioner: p·q, q·M⁻¹q, q·q, p·p with q = hp + tau p."""
    hp, p, m = _f64(hp), _f64(p), _f64(m)
    q = hp + tau * p
    return float(p @ q), float(q @ (m * q)), float(q @ q), float(p @ p)


def preconditioned_update(
    x: ArrayLike,
    r: ArrayLike,
    p: ArrayLike,
    hp: ArrayLike,
    m: ArrayLike,
    *,
    alpha_x: float,
    alpha_r: float,
    beta: float,
    tau: float = 0.0,
) -> tuple[Vector, Vector, Vector, float, float]:
    """Pass B with a preconditioner: x + alpha_x p, r - alpha_r q, p' = M⁻¹r' + beta p, and r'·M⁻¹r', r'·r'."""
    x, r, p, hp = _f64(x), _f64(r), _f64(p), _f64(hp)
    r_new = r - alpha_r * (hp + tau * p)
    z = _f64(m) * r_new
    return x + alpha_x * p, r_new, z + beta * p, float(r_new @ z), float(r_new @ r_new)


def accumulate(acc: ArrayLike, hv: ArrayLike, weight: float = 1.0) -> Vector:
    """Acc + weight hv."""
    return _f64(acc) + weight * _f64(hv)


def accumulate_curvature(
    acc: ArrayLike, hv: ArrayLike, p: ArrayLike, weight: float = 1.0, tau: float = 0.0
) -> tuple[Vector, float, float, float]:
    """Acc + weight hv, and pass A on it."""
    total = accumulate(acc, hv, weight)
    return (total, *damped_curvature(total, p, tau))


def pack(flat: ArrayLike, scale: float = 1.0) -> Vector:
    """Scale times the packed tensors (given as a flat vector here)."""
    return scale * _f64(flat)


def weighted_step(w: ArrayLike, d: ArrayLike, g: ArrayLike, lr: float) -> tuple[Vector, float, float, float]:
    """W + lr d, and the sums g·d, g·g, d·d of the feasibility check."""
    w, d, g = _f64(w), _f64(d), _f64(g)
    return w + lr * d, float(g @ d), float(g @ g), float(d @ d)


def feasible(gd: float, gg: float, dd: float, eps: float = 1e-6) -> bool:
    """The scale-free descent test g·d <= -eps |g| |d|: False too if anything is not finite."""
    return bool(np.isfinite([gd, gg, dd]).all() and gd <= -eps * np.sqrt(gg) * np.sqrt(dd))


@dataclass
class State:
    """The scalars of one solve; the fields are those of ``csrc/ncg/state.h``, where float64 needs them: ``scale`` and
    ``q_scale`` only keep squares of float32 numbers in range.
    """

    rr: float = 0.0
    rz: float = 0.0
    tau: float = 0.0
    tol_rr: float = 0.0
    max_iter: int = 0
    eps: float = float(np.finfo(np.float64).eps)
    largest: float = float(np.finfo(np.float64).max)
    iteration: int = 0
    stop: StopReason = StopReason.RUNNING
    pending: StopReason = StopReason.RUNNING
    alpha_x: float = 0.0
    alpha_r: float = 0.0
    beta: float = 0.0
    rz_predicted: float = 0.0
    drift: float = 0.0
    pq: float = 0.0
    qq: float = 0.0
    pp: float = 0.0
    reach: float = 0.0
    """Bound on the largest |x_i - x0_i| so far."""

    def begin(self, rz: float, rr: float, bb: float, *, cg_tol: float) -> None:
        """Start with r·z (r·r where there is no preconditioner), r·r and b·b; stops where there is nothing to do."""
        # below eps |b| a recursive residual is rounding, and the solve would run away on it
        self.rz, self.rr, self.tol_rr = rz, rr, max(cg_tol, self.eps) ** 2 * bb
        if not np.isfinite([rz, rr, bb]).all():
            self.stop = StopReason.BREAKDOWN
        elif rr <= self.tol_rr:
            self.stop = StopReason.CONVERGED
        elif self.max_iter < 1:
            self.stop = StopReason.MAX_ITER
        elif rz <= 0:
            self.stop = StopReason.BREAKDOWN

    def after_curvature(self, pq: float, qmq: float, qq: float, pp: float) -> None:
        """Between the passes: the step lengths. r·q = p·q in CG, so the next rz is predicted as alpha² q·M⁻¹q - rz and
        beta is known before pass B (Chen and Carson, "Predict-and-recompute conjugate gradient variants", 2020).
        """
        self.pq, self.qq, self.pp = pq, qq, pp
        self.alpha_x = self.alpha_r = self.beta = 0.0
        if not np.isfinite([pq, qmq, qq, pp]).all():
            self.stop = StopReason.BREAKDOWN
            return
        floor = CURVATURE_GUARD * self.eps * np.sqrt(pp) * np.sqrt(qq)
        positive = pq > floor
        # Keep the last x; before the first step there is none, so take steepest descent scaled by |curvature|.
        curvature = pq if positive else max(abs(pq), floor)
        if not positive and (self.iteration > 0 or curvature == 0):
            self.stop = StopReason.NEGATIVE_CURVATURE
            return
        alpha = self.rz / curvature
        reach = self.reach + alpha * np.sqrt(pp)
        fits = alpha <= self.largest and reach <= self.largest  # else the step might leave the range of numbers
        if not positive:
            if not fits:
                self.stop = StopReason.NEGATIVE_CURVATURE
                return
            self.pending = StopReason.NEGATIVE_CURVATURE
        else:
            predicted = alpha * alpha * qmq - self.rz
            beta = max(0.0, predicted / self.rz)
            if not (fits and beta <= self.largest):  # also catches NaN
                self.stop = StopReason.BREAKDOWN
                return
            self.beta, self.rz_predicted = beta, predicted
        self.alpha_x = self.alpha_r = alpha
        self.reach = reach

    def after_update(self, rz: float, rr: float) -> None:
        """After pass B: the recomputed sums decide whether another iteration follows."""
        self.iteration += 1
        if not np.isfinite([rz, rr]).all():
            self.stop = StopReason.BREAKDOWN
            return
        if self.pending:
            self.rz, self.rr, self.stop = rz, rr, self.pending
            return
        # A symmetric, constant matvec predicts rz to rounding: the largest miss is a free alarm for one that is not.
        self.drift = max(self.drift, abs(rz - self.rz_predicted) / max(self.rz, rz))
        self.rz, self.rr = rz, rr
        if rr <= self.tol_rr:
            self.stop = StopReason.CONVERGED
        elif self.iteration >= self.max_iter:
            self.stop = StopReason.MAX_ITER
        elif rz <= 0:
            self.stop = StopReason.BREAKDOWN


def cg(
    matvec: Callable[[Vector], ArrayLike],
    b: ArrayLike,
    *,
    tau: float = 0.0,
    cg_tol: float = 1e-5,
    max_iter: int = 20,
    x0: ArrayLike | None = None,
    preconditioner: ArrayLike | None = None,
) -> tuple[Vector, State]:
    """Two-pass CG on (H + tau I) x = b, from x0 or zero: the algorithm of :func:`ncg_cuda.cg` without its checks."""
    b = _f64(b)
    m = np.ones_like(b) if preconditioner is None else _f64(preconditioner)
    x = np.zeros_like(b) if x0 is None else _f64(x0).copy()
    r = b.copy() if x0 is None else b - (_f64(matvec(x)) + tau * x)
    p = m * r
    s = State(tau=tau, max_iter=max_iter)
    s.begin(float(r @ p), float(r @ r), float(b @ b), cg_tol=cg_tol)
    while not s.stop:
        hp = _f64(matvec(p))
        s.after_curvature(*preconditioned_curvature(hp, p, m, tau))
        if s.stop:
            break
        x, r, p, rz, rr = preconditioned_update(
            x, r, p, hp, m, alpha_x=s.alpha_x, alpha_r=s.alpha_r, beta=s.beta, tau=tau
        )
        s.after_update(rz, rr)
    return x, s
