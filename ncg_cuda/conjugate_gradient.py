"""Conjugate gradients on (H + tau I) x = b over any matvec: two fused passes, nine vectors moved per iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from . import ops
from .adapter import Adapter
from .arrays import Operand, operand
from .layout import Layout
from .state import StopReason

Callback = Callable[[int, Any, float], object]

# A recursive residual below this is not believed without a product: in float32 it can claim 1.3e-5 where the truth is
# 1.4e-3 (outlying eigenvalues, condition number 1e5).
_BELIEVED = {"float32": 1e-4, "float64": 1e-9}
# r·r / n outside these bounds is solved on a scaled system: squares would overflow or underflow on the way down.
_SAFE = {"float32": (1e-28, 1e28), "float64": (1e-280, 1e280)}


@dataclass(frozen=True)
class CGResult:
    """What a solve found, and why it stopped."""

    x: Any
    """The solution, an array like b."""
    iterations: int
    """Finished CG iterations."""
    residual_norm: float
    """|b - (H + tau I) x|: recomputed by a product where ``verified``, else as the recursion has it."""
    rhs_norm: float
    """|b|; convergence is residual_norm <= cg_tol * rhs_norm."""
    stop_reason: StopReason
    products: int
    """Calls of matvec."""
    verified: bool
    """Whether residual_norm comes from a product of its own."""
    curvature: float
    """p·(H + tau I)p / p·p of the last direction (NaN if there was none): an estimate of a typical eigenvalue."""
    drift: float
    """Largest relative miss of a predicted r·r. Far above rounding (say 0.1), the matvec is not symmetric or not
    constant, or the system is too ill-conditioned for its precision."""

    @property
    def converged(self) -> bool:
        """Whether the wanted residual was reached."""
        return self.stop_reason is StopReason.CONVERGED


def cg(
    matvec: Callable[[Any], Any],
    b: Any,
    *,
    tau: float = 0.0,
    cg_tol: float = 1e-5,
    max_iter: int = 20,
    x0: Any = None,
    callback: Callback | None = None,
    verify: bool | None = None,
    layout: Layout | None = None,
) -> CGResult:
    """Solve (H + tau I) x = b for symmetric H by conjugate gradients, given only products H·p.

    Predict-and-recompute CG in two fused passes: 9 vectors of memory traffic per iteration (36 bytes per float32
    element), against about 19 in an unfused solver. Works on a scaled copy of the system where b is so large or small
    (|b_i| near 1e14 or 1e-14 in float32) that squares would overflow or underflow.

    Args:
        matvec: returns H·p for a direction p, an array of b's library in the solver's own memory: it may only be read,
            and only during the call (also if it is a JAX or TensorFlow array). The product is *undamped* and of b's
            library, shape and dtype; it may be a sequence of arrays if ``layout`` is given.
        b: right-hand side, of any shape, float32 or float64: an array of NumPy, CuPy, torch (read as if detached), JAX,
            TensorFlow (eager), or any library with DLPack (then matvec gets NumPy arrays, on a GPU arrays of CuPy or
            torch). The solve is made on its device and the current stream; on a GPU, TensorFlow's matvec costs a
            synchronisation per call. Not changed.
        tau: damping added to the diagonal, >= 0.
        cg_tol: stop at residual norm <= cg_tol * |b|; >= 0.
        max_iter: most iterations, >= 1.
        x0: start, an array like b; zero by default. Not changed.
        callback: called as callback(iteration, x, residual_norm) after each iteration; x is the solver's own array:
            copy it to keep it (a JAX or TensorFlow array is a copy already).
        verify: check a claim of convergence by one more product, and go on or report STAGNATED if it does not hold.
            By default, only claims below 1e-4 (float32) or 1e-9 (float64) are checked.
        layout: where tensors stand in b, if matvec returns one array per tensor.

    Returns:
        A :class:`CGResult`. Its ``stop_reason`` is

        - CONVERGED, MAX_ITER;
        - NEGATIVE_CURVATURE: a direction with p·(H + tau I)p <= 0 was met; x is the last iterate before it, or, in the
          first iteration, the steepest-descent step x0 + (r·r / |p·q|) r;
        - BREAKDOWN: NaN or Inf in b, x0 or a product, or overflow; x is the last finite iterate (at once: x0 as it is);
        - STAGNATED: the recursion claims a residual that one product refutes, and iterating on does not help.

    Raises:
        TypeError: wrong type or dtype of b, x0 or a product.
        ValueError: tau, cg_tol or max_iter out of range; sizes or devices that do not match.

    Sources: K. Rupp et al., "Pipelined iterative solvers with kernel fusion for graphics processing units" (ACM TOMS
    2016); T. Chen and E. Carson, "Predict-and-recompute conjugate gradient variants" (SISC 2020).
    """
    tau = ops.check_tau(tau)
    if not callable(matvec):
        raise TypeError(f"matvec: got {type(matvec).__name__}; give a function, for a matrix h: lambda p: h @ p")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: got {type(callback).__name__}; give a function of (iteration, x, residual_norm)")
    if layout is not None and not isinstance(layout, Layout):
        raise TypeError(f"layout: got {type(layout).__name__}; give an ncg_cuda.Layout")
    if not isinstance(cg_tol, Real) or not isinstance(max_iter, Real):
        raise TypeError(f"cg_tol, max_iter: got {cg_tol!r} and {max_iter!r}; give numbers")
    cg_tol = float(cg_tol)
    if not (math.isfinite(cg_tol) and cg_tol >= 0):
        raise ValueError(
            f"cg_tol: {cg_tol}; the tolerance must be a finite number >= 0 (it is relative to the norm of b)"
        )
    if not (max_iter >= 1 and math.isfinite(max_iter) and int(max_iter) == max_iter):
        raise ValueError(f"max_iter: {max_iter}; at least one iteration is needed")
    arrays = Adapter(b, "b")
    with arrays.guard():
        start = None if x0 is None else arrays.start(x0, "x0")
        if start is not None and arrays.memory.peak(arrays.vector(arrays.operand)) == 0.0:
            start = None  # b = 0: the solution is 0, wherever the start
        solve = _Solve(matvec, arrays, start, tau, cg_tol, int(max_iter), layout)
        solve.run(callback, _BELIEVED[arrays.dtype] if verify is None else math.inf if verify else 0.0)
        return solve.result()


class _Solve:
    """One solve: its vectors, its workspace, its loop."""

    def __init__(
        self,
        matvec: Callable[[Any], Any],
        arrays: Adapter,
        x0: Any,
        tau: float,
        cg_tol: float,
        max_iter: int,
        layout: Layout | None,
    ) -> None:
        self.arrays = arrays
        self.matvec, self.tau, self.cg_tol, self.max_iter, self.layout = matvec, tau, cg_tol, max_iter, layout
        self.products = 0
        self.verified = False
        self.residual_norm: float | None = None
        self.b, self.x0 = arrays.vector(arrays.operand), x0
        self.scale = 1.0
        segments = 0 if layout is None else len(layout.shapes)
        self.workspace = ops.Workspace(arrays.operand, segments, arrays.memory)
        self._begin()
        scale = self._wanted_scale()
        if scale != 1.0:
            self.scale = scale
            self.b = arrays.scaled(self.b, scale)
            self.x0 = None if x0 is None else arrays.scaled(x0, scale)
            self._begin()

    def _begin(self) -> None:
        copy = self.arrays.memory.copy
        self.state = dict.fromkeys(ops.STATE_FIELDS, 0.0)
        finfo = np.finfo(self.arrays.dtype)
        self._set(
            tau=self.tau, cg_tol=self.cg_tol, max_iter=self.max_iter, eps=float(finfo.eps), largest=float(finfo.max)
        )
        if self.x0 is None:
            self.x = self.arrays.zeros()
            self.r = copy(self.b)
        else:
            self.x = copy(self.x0)
            self.r = self.p = self.x  # for the check of overlaps; replaced at once
            self.r = self._residual()
        self.p = copy(self.r)
        ops.call(
            "dots", [(self.r, "r"), (self.b, "b")], written=0, workspace=self.workspace, in_solve=True
        )  # two names of one vector where x0 is zero: b is not written
        self._poll()

    def _set(self, **values: float) -> None:
        """Write fields of the state block."""
        self.state.update(values)
        self.workspace.write_state(self.state)

    def _poll(self) -> StopReason:
        """Read the state block (on a GPU: wait for it)."""
        self.state = self.workspace.read_state()
        return StopReason(int(self.state["stop"]))

    def _wanted_scale(self) -> float:
        low, high = _SAFE[self.arrays.dtype]
        mean = max(self.state["rr"], self.state["bb"]) / self.arrays.size
        if low <= mean <= high:
            return 1.0
        peak = self.arrays.memory.peak(self.b)
        if not (math.isfinite(peak) and peak > 0):
            return 1.0  # b = 0, or not finite: nothing that a scale would mend
        # neither the scale nor its inverse may leave the range of normal numbers
        limit = int(np.finfo(self.arrays.dtype).maxexp) - 2
        return math.ldexp(1.0, max(-limit, min(limit, -math.frexp(peak)[1])))

    def _product(self, p: Any) -> Any:
        """H·p, checked."""
        hp = self.matvec(self.arrays.lend(p))
        self.products += 1
        if isinstance(hp, (list, tuple)):
            if self.layout is None:
                raise TypeError("matvec: returned a sequence of arrays; give cg(..., layout=Layout(shapes)) for that")
            parts = self.layout.checked(hp, "matvec")
            return [
                self._apart(self.arrays.described(part, f"matvec's product {i}"), p) if self.layout.lengths[i] else part
                for i, part in enumerate(parts)
            ]
        return self._apart(self.arrays.product(hp), p)

    def _apart(self, hp: Operand, p: Any) -> Operand:
        """The product, copied where it shares memory with a vector that pass B writes."""
        shared = any(hp.overlaps(operand(v, "")) for v in (self.x, self.r, p))
        return self.arrays.copied(hp) if shared else hp

    def _residual(self) -> Any:
        """The true residual of x, by a product."""
        hp = self._product(self.x)
        if self.layout is not None and isinstance(hp, list):
            hx = self.arrays.pack(hp, self.layout)
        else:
            hx = self.arrays.vector(hp)
        return self.b - hx - self.tau * self.x

    def run(self, callback: Callback | None, believed: float) -> None:
        stop = self._poll()
        refuted = math.inf  # r·r of the last claim that a product refuted
        while stop is StopReason.RUNNING:
            hp = self._product(self.p)
            common: dict[str, Any] = {"workspace": self.workspace, "in_solve": True, "layout": self.layout}
            ops.call("damped_curvature", [(hp, "hp"), (self.p, "p")], written=0, **common)
            ops.call("cg_update", [(hp, "hp"), (self.x, "x"), (self.r, "r"), (self.p, "p")], written=3, **common)
            before = self.state["iteration"]
            stop = self._poll()
            if callback is not None and self.state["iteration"] > before:
                callback(
                    int(self.state["iteration"]),
                    self.arrays.show(self._unscaled()),
                    math.sqrt(self.state["rr"]) / self.scale,
                )
            if stop is StopReason.CONVERGED:
                if self.state["rr"] < believed**2 * self.state["bb"]:
                    stop, refuted = self._verify(refuted)
                elif not self._reached(self.state["rr"]):  # at rounding level, and more was asked for
                    self._set(stop=float(StopReason.STAGNATED))

    def _verify(self, refuted: float) -> tuple[StopReason, float]:
        """One product says whether the claim holds. If not, the true residual goes into the recursion (p keeps its
        memory: restarting it loses the superlinear convergence), until that stops helping.
        """
        true = self._residual()
        rr = float(ops.dots(true, true)[0])
        self.verified, self.residual_norm = True, math.sqrt(rr) if rr >= 0 else math.nan
        verdict = StopReason.STAGNATED
        if not math.isfinite(rr):
            verdict = StopReason.BREAKDOWN
        elif self._reached(rr):
            verdict = StopReason.CONVERGED
        elif self.state["iteration"] >= self.max_iter:
            verdict = StopReason.MAX_ITER
        elif rr < 0.25 * refuted:
            verdict = StopReason.RUNNING
        self._set(rr=rr, stop=float(verdict))
        if verdict is not StopReason.RUNNING:
            return verdict, refuted
        self.p += true - self.r
        self.r = true
        self.verified, self.residual_norm = False, None
        return StopReason.RUNNING, rr

    def _reached(self, rr: float) -> bool:
        """Whether a residual is what the caller asked for."""
        return rr <= self.cg_tol**2 * self.state["bb"]

    def _unscaled(self) -> Any:
        return self.x if self.scale == 1.0 else self.arrays.scaled(self.x, 1.0 / self.scale)

    def result(self) -> CGResult:
        s = self.state
        residual = math.sqrt(s["rr"]) if self.residual_norm is None else self.residual_norm
        with np.errstate(over="ignore"):
            x = self._unscaled()
        if self.scale != 1.0 and not self.arrays.memory.finite(x):
            s = {**s, "stop": float(StopReason.BREAKDOWN)}  # the solution is beyond the largest number of its dtype
            x = self.arrays.zeros() if self.x0 is None else self.arrays.scaled(self.x0, 1.0 / self.scale)
            residual = math.nan
        return CGResult(
            x=self.arrays.give(x),
            iterations=int(s["iteration"]),
            residual_norm=residual / self.scale,
            rhs_norm=math.sqrt(s["bb"]) / self.scale,
            stop_reason=StopReason(int(s["stop"])),
            products=self.products,
            verified=self.verified,
            curvature=s["pq"] / s["pp"] if s["pp"] > 0 else math.nan,
            drift=s["drift"],
        )
