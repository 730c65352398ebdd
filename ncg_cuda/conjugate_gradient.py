"""Conjugate gradients on (H + tau I) x = b over any matvec, in two fused passes: 8 or 9 vectors moved per iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from . import ops
from .adapter import Adapter
from .dlpack import CPU
from .layout import Layout
from .result import CGResult
from .solve import Matvec, Solve, System
from .state import StopReason
from .streams import drop_finished

Callback = Callable[[int, Any, float], object]

# A recursive residual below this is not believed without a product: in float32 it can claim 1.3e-5 where the truth is
# 1.4e-3 (outlying eigenvalues, condition number 1e5).
_BELIEVED = {"float32": 1e-4, "float64": 1e-9}

POLL_ON_GPU = 4
"""Iterations between two looks at the stop flag on a GPU: a look costs a synchronisation, an iteration too many a
product."""


def cg(
    matvec: Matvec | Sequence[Matvec],
    b: Any,
    *,
    tau: float = 0.0,
    cg_tol: float = 1e-5,
    max_iter: int = 20,
    x0: Any = None,
    preconditioner: Any = None,
    weights: Sequence[float] | None = None,
    callback: Callback | None = None,
    poll: int | None = None,
    verify: bool | None = None,
    layout: Layout | None = None,
    defer_x: bool | None = None,
    bfloat16: bool = False,
) -> CGResult:
    """Solve (H + tau I) x = b for symmetric H by conjugate gradients, given only products H·p.

    Predict-and-recompute CG in two fused passes: 8 vectors of memory traffic per iteration on average (32 bytes per
    float32 element), against about 19 in an unfused solver. Where b or the products are so large or small that squares
    would overflow or underflow (in float32: mean |b_i| above 2e6 or below 5e-7, products above 2e14 or below 5e-15), it
    works on a scaled system, at the price of one product more in the case of H.

    Runs where b lives: on the CPU, or on b's GPU, there in the order of the current stream of b's library.

    Args:
        matvec: returns H·p for a direction p, an array of b's library and shape on b's device (read-only, valid during
            the call only). The product is *undamped* and of b's size and dtype; it may be a sequence of arrays if
            ``layout`` is given. A sequence of such functions is one per micro-batch: H is the weighted sum of theirs.
        b: right-hand side, float32 or float64, any shape: an array of NumPy, CuPy, torch, JAX, TensorFlow (eager) or of
            any library with DLPack. Not changed.
        tau: damping added to the diagonal, >= 0.
        cg_tol: stop at residual norm <= cg_tol * |b|; >= 0.
        max_iter: most iterations, >= 1.
        x0: start, an array like b; zero by default. Not changed.
        preconditioner: M⁻¹ for a diagonal M near H + tau I, as an array like b of positive numbers: such as
            ``1 / (diagonal + tau)``. Costs 3 vectors of traffic per iteration. Its scale makes no difference, but the
            solver does not choose it: keep M⁻¹b between 1e-18 and 1e18 in float32.
        weights: one number per micro-batch; by default 1 / (their number), the mean.
        callback: called as callback(iteration, x, residual_norm) at each look at the solve (see ``poll``); x is the
            solver's own array: copy it to keep it, and do not write to it.
        poll: iterations between two looks at the stop flag. On a GPU a look waits for the stream; iterations after the
            stop change nothing, but cost their products. 0: never look, launch ``max_iter`` iterations and return at
            once; the result reads its numbers when asked for them. (A matrix that makes it scale products, see above,
            costs one of the iterations.) Default: 1 on the CPU and with a callback, else 4.
            With TensorFlow's arrays on a GPU each product waits for the stream, whatever this says: TensorFlow takes no
            part in the ordering of streams. With JAX's, the host runs at most 8 products ahead.
            A solve with ``poll=0`` can be captured in a CUDA graph; capture it within
            ``cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc)`` and keep that pool and the result as long as
            the graph (what the matvec allocates would otherwise be given to others), or let
            :class:`ncg_cuda.GraphCG` do all that.
        verify: check a claim of convergence by one more product, and go on or report STAGNATED if it does not hold.
            By default, only claims below 1e-4 (float32) or 1e-9 (float64) are checked, and none with ``poll=0``.
        layout: where tensors stand in b, if matvec returns one array per tensor. What b and x0 hold between them is
            taken as zero.
        defer_x: move x in every second iteration only: 8 vectors of traffic instead of 9, at the price of a few
            roundings in x. Default: True, but for a callback (which wants x) or a preconditioner.
        bfloat16: take products in bfloat16 beside a float32 b, in half the bytes. The residual then stalls near 1e-2.

    Returns:
        A :class:`CGResult`. Its ``stop_reason`` is

        - CONVERGED, MAX_ITER;
        - NEGATIVE_CURVATURE: a direction with p·(H + tau I)p <= 0 was met; x is the last iterate before it, or, in the
          first iteration, the steepest-descent step x0 + (r·z / |p·q|) p;
        - BREAKDOWN: NaN or Inf in b, x0 or a product, overflow, or a preconditioner that is not positive; x is the last
          finite iterate (at once: x0 as it is);
        - STAGNATED: the recursion claims a residual that one product refutes, and iterating on does not help.

    Raises:
        TypeError: wrong type or dtype of b, x0, the preconditioner or a product.
        ValueError: tau, cg_tol, max_iter, poll or weights out of range; shapes or devices that do not match; options
            that exclude each other; a matvec that writes to its argument.

    Sources: K. Rupp et al., "Pipelined iterative solvers with kernel fusion for graphics processing units" (ACM TOMS
    2016); T. Chen and E. Carson, "Predict-and-recompute conjugate gradient variants" (SISC 2020).
    """
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: got {type(callback).__name__}; give a function of (iteration, x, residual_norm)")
    if defer_x and preconditioner is not None:
        raise ValueError("defer_x: True with a preconditioner, which has no such variant; leave defer_x out")
    system = check_system(matvec, weights, tau, cg_tol, max_iter, layout, bfloat16)
    arrays = Adapter(b, "b")
    looks = _check_poll(poll, callback, verify, arrays.device)
    if defer_x is None:
        defer_x = callback is None and preconditioner is None
    with arrays.guard():
        start = None if x0 is None else arrays.start(x0, "x0")
        m = None if preconditioner is None else arrays.start(preconditioner, "preconditioner")
        solve = Solve(system, arrays, arrays.operand, m, start, defer_x=defer_x)
        solve.begin()
        if looks == 0:
            for _ in range(system.max_iter):
                solve.iterate()
            solve.finish()
            return CGResult(arrays.give(solve.x.array), solve, products=solve.products, done=arrays.mark())
        believed = _BELIEVED[arrays.dtype] if verify is None else math.inf if verify else 0.0
        return _Watched(solve, believed, callback, looks).run()


def check_system(
    matvec: Matvec | Sequence[Matvec],
    weights: Sequence[float] | None,
    tau: float,
    cg_tol: float,
    max_iter: int,
    layout: Layout | None,
    bfloat16: bool,
) -> System:
    """The system that a caller describes; errors as :func:`cg` has them."""
    tau = ops.check_tau(tau)
    parts = list(matvec) if isinstance(matvec, (list, tuple)) else [matvec]
    for part in parts:
        if not callable(part):
            raise TypeError(f"matvec: got {type(part).__name__}; give a function, for a matrix h: lambda p: h @ p")
    if not parts:
        raise ValueError("matvec: an empty sequence; give at least one function")
    if weights is not None and (isinstance(weights, str) or not hasattr(weights, "__len__")):
        raise TypeError(f"weights: got {weights!r}; give a sequence of numbers, one for each matvec")
    given = weights is not None
    weights = [1.0 / len(parts)] * len(parts) if weights is None else list(weights)
    if len(weights) != len(parts):
        raise ValueError(f"weights: {len(weights)} given for {len(parts)} matvecs; give one for each")
    elif not all(isinstance(w, Real) and math.isfinite(w) for w in weights):
        raise ValueError(f"weights: {list(weights)!r}; give finite numbers")
    elif given and not isinstance(matvec, (list, tuple)):
        raise ValueError("weights: given for a single matvec; give a sequence of matvecs, or scale the product")
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
        raise ValueError(f"max_iter: {max_iter}; give an integer >= 1")
    pairs = [(part, float(weight)) for part, weight in zip(parts, weights, strict=True)]
    return System(pairs, tau, cg_tol, int(max_iter), layout, bool(bfloat16))


def _check_poll(poll: int | None, callback: Callback | None, verify: bool | None, device: str) -> int:
    if poll is None:
        return 1 if device == CPU or callback is not None else POLL_ON_GPU
    if not isinstance(poll, Integral) or isinstance(poll, bool) or poll < 0:
        raise ValueError(f"poll: {poll!r}; give the iterations between two looks, an integer >= 0 (0: never look)")
    if poll == 0 and (callback is not None or verify):
        what = "callback" if callback is not None else "verify"
        raise ValueError(f"{what}: not possible with poll=0, which never looks at the solve; give poll >= 1")
    return int(poll)


class _Watched:
    """A solve whose state the host looks at every few iterations."""

    def __init__(self, solve: Solve, believed: float, callback: Callback | None, looks: int) -> None:
        self.solve, self.believed, self.callback, self.looks = solve, believed, callback, looks
        self.state: dict[str, float] = {}
        self.verified = False
        self.residual_norm: float | None = None

    def _look(self) -> StopReason:
        self.state = self.solve.workspace.read_state()
        return StopReason(int(self.state["stop"]))

    def _set(self, **values: float) -> None:
        self.state.update(values)
        self.solve.workspace.write_state(self.state)

    def run(self) -> CGResult:
        solve = self.solve
        stop = self._look()
        refuted = math.inf  # r·r of the last claim that a product refuted
        while stop is StopReason.RUNNING:
            before = self.state["iteration"]
            for _ in range(min(self.looks, solve.system.max_iter - int(before))):
                solve.iterate()
            stop = self._look()
            if self.callback is not None and self.state["iteration"] > before:
                self._show()
            if stop is StopReason.CONVERGED:
                if self.state["rr"] < self.believed**2 * self.state["bb"]:
                    stop, refuted = self._verify(refuted)
                elif not self._reached(self.state["rr"]):  # at rounding level, and more was asked for
                    self._set(stop=float(StopReason.STAGNATED))
        return self._result()

    def _show(self) -> None:
        assert self.callback is not None
        self._catch_up()
        s, arrays, x = self.state, self.solve.arrays, self.solve.x
        if s["scale"] != 1.0:
            x = self.solve.scaled(x, 1.0 / s["scale"])
        self.callback(int(s["iteration"]), arrays.show(x.array), math.sqrt(s["rr"]) / s["scale"])

    def _catch_up(self) -> None:
        """Give x the step that it still misses."""
        if self.state["deferred"]:
            solve = self.solve
            ops.cg_finish(solve.x, solve.r, solve.p, deferred=self.state["deferred"], workspace=solve.workspace)
            self._set(deferred=0.0)

    def _verify(self, refuted: float) -> tuple[StopReason, float]:
        """One product says whether the claim holds. If not, the true residual goes into the recursion (p keeps its
        memory: restarting it loses the superlinear convergence), until that stops helping.
        """
        self._catch_up()
        solve = self.solve
        true = solve.residual(self.state["scale"])
        rz, rr = solve.squares(true)
        self.verified, self.residual_norm = True, math.sqrt(rr) if rr >= 0 else math.nan
        verdict = StopReason.STAGNATED
        if not math.isfinite(rr):
            verdict = StopReason.BREAKDOWN
        elif self._reached(rr):
            verdict = StopReason.CONVERGED
        elif self.state["iteration"] >= solve.system.max_iter:
            verdict = StopReason.MAX_ITER
        elif rr < 0.25 * refuted:
            verdict = StopReason.RUNNING
        self._set(rr=rr, rz=rz, stop=float(verdict))
        if verdict is not StopReason.RUNNING:
            return verdict, refuted
        solve.replace_residual(true)
        self.verified, self.residual_norm = False, None
        return StopReason.RUNNING, rr

    def _reached(self, rr: float) -> bool:
        """Whether a residual is what the caller asked for."""
        return rr <= self.solve.system.cg_tol**2 * self.state["bb"]

    def _result(self) -> CGResult:
        solve, s, residual = self.solve, self.state, self.residual_norm
        drop_finished()  # products of JAX and others
        solve.finish()
        if s["stop"] == StopReason.BREAKDOWN and s["iteration"] == 0:
            solve.forget()  # x0 as it is: in the solve's units it may have overflowed
        return CGResult(
            solve.arrays.give(solve.x.array),
            solve,
            products=solve.products,
            state=s,
            residual_norm=residual,
            verified=self.verified,
        )
