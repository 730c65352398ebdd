"""The fused operations on arrays: what :mod:`ncg_cuda.reference` specifies, run by the native engines.

Arrays are C-contiguous arrays of NumPy, CuPy, torch or any library with DLPack (JAX, TensorFlow's eager tensors), read
where they stand. Any shape is taken as flat; dtypes are float32 or float64, the same for all operands of a call, and so
is the device. ``hp``, the product H·p, may also be a sequence of arrays, one per tensor of a model: it is then read
where it stands, as the flat vector of :class:`ncg_cuda.Layout` (tensors on multiples of 16 elements; the padding of the
other operands must be zero).

On the CPU the sums are Python floats. On a GPU (with a CUDA engine) the operation is queued on the current stream of
the library that the written arrays belong to, without synchronisation, and the sums stay on the device, as scalars of
torch or CuPy; where a workspace is given they are views of it, valid until its next use. Where libraries are mixed,
each waits for the other's work on the arrays. For JAX and TensorFlow arrays alone, CuPy's current stream is used
(torch's if only torch is imported).

JAX and TensorFlow arrays are immutable: they are read, but not taken where an operation writes. A torch tensor that
requires grad is read as if detached; it is written only within ``torch.no_grad()``. Operations run eagerly only: not in
``jax.jit``, ``tf.function`` or ``torch.compile``.

Float32 sums are added in float32 over at most 256 elements and in float64 beyond, in an order that depends on the
vector's length alone: the same bits for any number of threads, and whether ``hp`` is flat or a sequence.

Every function raises TypeError or ValueError, naming the argument, for a wrong type, dtype, size or device, an array
that is not contiguous, a read-only output, and an output that overlaps another operand.
"""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from typing import Any

import numpy as np

from . import _core
from .calls import STATE_FIELDS as STATE_FIELDS
from .calls import Workspace as Workspace
from .calls import call
from .layout import Layout

CHUNK: int = _core.CHUNK
"""Elements that one block or one thread takes at a time."""

VECTORS_MOVED: dict[str, int] = {name: sum(moved) for name, moved in _core.traffic().items()}
"""Vectors that one call of an operation reads and writes, as its functor declares them."""

# A forked child inherits OpenMP's state but none of its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=lambda: _core.set_num_threads(1))


def _scalars(sums: Any, count: int) -> tuple[Any, ...]:
    return tuple(sums[:count].tolist()) if isinstance(sums, np.ndarray) else tuple(sums[i] for i in range(count))


def _reals(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, Real):
            raise TypeError(f"{name}: got {value!r}; give a number")


def check_tau(tau: float) -> float:
    """Return tau as a float if it is a possible damping.

    Raises:
        ValueError: negative, infinite or NaN.
        TypeError: not a number.
    """
    _reals(tau=tau)
    value = float(tau)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"tau: {tau}; the damping must be a finite number >= 0")
    return value


def damped_curvature(
    hp: Any, p: Any, tau: float = 0.0, *, layout: Layout | None = None, workspace: Workspace | None = None
) -> tuple[Any, Any, Any]:
    """Pass A of CG: the sums p·q, q·q and p·p with q = hp + tau p, which is not written.

    Args:
        hp: the product H·p: an array like ``p``, or a sequence of arrays (see the module's text).
        p: search direction, n elements.
        tau: damping, >= 0.
        layout: where the tensors of a sequence ``hp`` stand; by default in order, each on a multiple of 16.
        workspace: from an earlier call, to save its allocation.

    Returns:
        (p·q, q·q, p·p) in float64.
    """
    tau = check_tau(tau)
    sums = call("damped_curvature", [(hp, "hp"), (p, "p")], written=0, params=[tau], workspace=workspace, layout=layout)
    pq, qq, pp = _scalars(sums, 3)
    return pq, qq, pp


def cg_update(
    x: Any,
    r: Any,
    p: Any,
    hp: Any,
    *,
    alpha: float,
    beta: float,
    tau: float = 0.0,
    alpha_x: float | None = None,
    layout: Layout | None = None,
    workspace: Workspace | None = None,
) -> Any:
    """Pass B of CG, in place: x += alpha_x p, r -= alpha (hp + tau p), p = r + beta p; returns r·r of the new r.

    Args:
        x: solution, n elements, updated.
        r: residual, updated.
        p: search direction, updated.
        hp: the product H·p of the old p: an array like ``p``, or a sequence of arrays.
        alpha: step of r, and of x unless ``alpha_x`` is given.
        beta: share of the old direction in the new one.
        tau: damping, >= 0.
        alpha_x: step of x.
        layout: see :func:`damped_curvature`.
        workspace: see :func:`damped_curvature`.

    Returns:
        r·r in float64.
    """
    tau = check_tau(tau)
    alpha_x = alpha if alpha_x is None else alpha_x
    _reals(alpha=alpha, alpha_x=alpha_x, beta=beta)
    params = [alpha_x, alpha, beta, tau]
    operands = [(hp, "hp"), (x, "x"), (r, "r"), (p, "p")]
    sums = call("cg_update", operands, written=3, params=params, workspace=workspace, layout=layout)
    (rr,) = _scalars(sums, 1)
    return rr


def weighted_step(w: Any, d: Any, g: Any, lr: float, *, workspace: Workspace | None = None) -> tuple[Any, Any, Any]:
    """The step w += lr d, in place, with the sums of the feasibility check.

    Args:
        w: weights, n elements, updated (unchanged for ``lr`` = 0).
        d: direction.
        g: gradient.
        lr: learning rate.
        workspace: see :func:`damped_curvature`.

    Returns:
        (g·d, g·g, d·d) in float64; d is a descent direction if g·d <= -eps |g| |d|.
    """
    _reals(lr=lr)
    sums = call("weighted_step", [(d, "d"), (g, "g"), (w, "w")], written=1, params=[lr], workspace=workspace)
    gd, gg, dd = _scalars(sums, 3)
    return gd, gg, dd


def cg_update_deferred(
    x: Any,
    r: Any,
    p: Any,
    hp: Any,
    *,
    alpha: float,
    beta: float,
    tau: float = 0.0,
    alpha_x: float | None = None,
    deferred: float = 0.0,
    x_moves: bool = True,
    layout: Layout | None = None,
    workspace: Workspace | None = None,
) -> Any:
    """Pass B that leaves x alone in every second iteration: 8 vectors moved on average instead of 9.

    As :func:`cg_update`, but x is neither read nor written unless ``x_moves``; then it also makes up for the step that
    it missed: x += deferred (p - r) + alpha_x p, with the old p and r and deferred = alpha / beta of that step.

    Returns:
        r·r in float64.
    """
    tau = check_tau(tau)
    alpha_x = alpha if alpha_x is None else alpha_x
    _reals(alpha=alpha, alpha_x=alpha_x, beta=beta, deferred=deferred)
    params = [alpha_x, alpha, beta, tau, deferred, float(bool(x_moves))]
    operands = [(hp, "hp"), (x, "x"), (r, "r"), (p, "p")]
    sums = call("cg_update_deferred", operands, written=3, params=params, workspace=workspace, layout=layout)
    (rr,) = _scalars(sums, 1)
    return rr


def preconditioned_begin(
    b: Any, m: Any, x: Any, r: Any, p: Any, *, scale: float = 1.0, workspace: Workspace | None = None
) -> tuple[Any, Any]:
    """The beginning of a solve with the diagonal preconditioner M = diag(1 / m): x = 0, r = scale b, p = m r.

    Returns:
        (r·z, r·r) in float64, with z = m r.
    """
    _reals(scale=scale)
    operands = [(b, "b"), (m, "m"), (x, "x"), (r, "r"), (p, "p")]
    rz, rr = _scalars(call("preconditioned_begin", operands, written=3, params=[scale], workspace=workspace), 2)
    return rz, rr


def preconditioned_curvature(
    hp: Any, p: Any, m: Any, tau: float = 0.0, *, layout: Layout | None = None, workspace: Workspace | None = None
) -> tuple[Any, Any, Any, Any]:
    """Pass A of CG with the diagonal preconditioner M = diag(1 / m); arguments as in :func:`damped_curvature`.

    Returns:
        (p·q, q·m q, q·q, p·p) in float64, with q = hp + tau p.
    """
    tau = check_tau(tau)
    operands = [(hp, "hp"), (p, "p"), (m, "m")]
    sums = call("preconditioned_curvature", operands, written=0, params=[tau], workspace=workspace, layout=layout)
    pq, qmq, qq, pp = _scalars(sums, 4)
    return pq, qmq, qq, pp


def preconditioned_update(
    x: Any,
    r: Any,
    p: Any,
    hp: Any,
    m: Any,
    *,
    alpha: float,
    beta: float,
    tau: float = 0.0,
    alpha_x: float | None = None,
    layout: Layout | None = None,
    workspace: Workspace | None = None,
) -> tuple[Any, Any]:
    """Pass B of CG with the diagonal preconditioner M = diag(1 / m): as :func:`cg_update`, but p = m r + beta p.

    Returns:
        (r·z, r·r) of the new r in float64, with z = m r.
    """
    tau = check_tau(tau)
    alpha_x = alpha if alpha_x is None else alpha_x
    _reals(alpha=alpha, alpha_x=alpha_x, beta=beta)
    params = [alpha_x, alpha, beta, tau]
    operands = [(hp, "hp"), (m, "m"), (x, "x"), (r, "r"), (p, "p")]
    sums = call("preconditioned_update", operands, written=3, params=params, workspace=workspace, layout=layout)
    rz, rr = _scalars(sums, 2)
    return rz, rr


def cg_begin(b: Any, x: Any, r: Any, p: Any, *, scale: float = 1.0, workspace: Workspace | None = None) -> Any:
    """The beginning of a solve: x = 0, r = p = scale b. Returns r·r in float64."""
    _reals(scale=scale)
    operands = [(b, "b"), (x, "x"), (r, "r"), (p, "p")]
    (rr,) = _scalars(call("cg_begin", operands, written=3, params=[scale], workspace=workspace), 1)
    return rr


def cg_begin_from(
    b: Any, x0: Any, x: Any, r: Any, p: Any, *, scale: float = 1.0, workspace: Workspace | None = None
) -> None:
    """The beginning of a solve from x0: x = p = scale x0, r = scale b.

    A product H·x and ``cg_update(x, r, p, hx, alpha=1, alpha_x=0, beta=0, tau=tau)`` then make r and p the residual.
    """
    _reals(scale=scale)
    operands = [(b, "b"), (x0, "x0"), (x, "x"), (r, "r"), (p, "p")]
    call("cg_begin_from", operands, written=3, params=[scale, scale], workspace=workspace)


def cg_restart(
    b: Any, r: Any, p: Any, *, scale: float = 1.0, workspace: Workspace | None = None
) -> tuple[Any, Any, Any]:
    """The sums r·p, r·r and (scale b)·(scale b) in one pass, in float64."""
    _reals(scale=scale)
    sums = call("cg_restart", [(b, "b"), (r, "r"), (p, "p")], written=0, params=[scale], workspace=workspace)
    rp, rr, bb = _scalars(sums, 3)
    return rp, rr, bb


def cg_finish(
    x: Any, r: Any, p: Any, *, deferred: float = 0.0, inverse_scale: float = 1.0, workspace: Workspace | None = None
) -> None:
    """The end of a solve, in place: x = (x + deferred (p - r)) inverse_scale."""
    _reals(deferred=deferred, inverse_scale=inverse_scale)
    params = [deferred, inverse_scale]
    call("cg_finish", [(r, "r"), (p, "p"), (x, "x")], written=1, params=params, workspace=workspace)


def accumulate(
    acc: Any, hv: Any, weight: float = 1.0, *, layout: Layout | None = None, workspace: Workspace | None = None
) -> None:
    """One more micro-batch of a product, in place: acc += weight hv.

    Args:
        acc: the sum so far, n elements, updated. :func:`pack` writes its first part.
        hv: this micro-batch's product: an array like ``acc``, or a sequence of arrays.
        weight: this micro-batch's share.
        layout: see :func:`damped_curvature`.
        workspace: see :func:`damped_curvature`.
    """
    _reals(weight=weight)
    call("accumulate", [(hv, "hv"), (acc, "acc")], written=1, params=[weight], workspace=workspace, layout=layout)


def accumulate_curvature(
    acc: Any,
    hv: Any,
    p: Any,
    weight: float = 1.0,
    tau: float = 0.0,
    *,
    layout: Layout | None = None,
    workspace: Workspace | None = None,
) -> tuple[Any, Any, Any]:
    """The last micro-batch of a product and pass A in one: acc += weight hv, and the sums with q = acc + tau p.

    Moves 4 vectors, where :func:`accumulate` and :func:`damped_curvature` move 5.

    Returns:
        (p·q, q·q, p·p) in float64.
    """
    tau = check_tau(tau)
    _reals(weight=weight)
    operands = [(hv, "hv"), (p, "p"), (acc, "acc")]
    params = [weight, tau]
    sums = call("accumulate_curvature", operands, written=1, params=params, workspace=workspace, layout=layout)
    pq, qq, pp = _scalars(sums, 3)
    return pq, qq, pp


def pack(
    tensors: Any, flat: Any, scale: float = 1.0, *, layout: Layout | None = None, workspace: Workspace | None = None
) -> None:
    """Tensors into one flat vector, in one pass: flat = scale tensors, with zeros between them.

    Args:
        tensors: a sequence of arrays, one per tensor, or one array like ``flat``.
        flat: n elements, overwritten: the buffer of an allreduce, or the first part of a sum.
        scale: factor.
        layout: see :func:`damped_curvature`.
        workspace: see :func:`damped_curvature`.
    """
    _reals(scale=scale)
    operands = [(tensors, "tensors"), (flat, "flat")]
    call("pack", operands, written=1, params=[scale, 1.0], workspace=workspace, layout=layout)


def unpack(
    flat: Any, tensors: Any, scale: float = 1.0, *, layout: Layout | None = None, workspace: Workspace | None = None
) -> None:
    """One flat vector into tensors, in one pass: tensors = scale flat; the other way about from :func:`pack`.

    Args:
        flat: n elements.
        tensors: a sequence of arrays, one per tensor, overwritten.
        scale: factor, such as 1 / the number of ranks after an allreduce.
        layout: see :func:`damped_curvature`.
        workspace: see :func:`damped_curvature`.
    """
    _reals(scale=scale)
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"tensors: got {type(tensors).__name__}; give a list of arrays")
    call(
        "unpack",
        [(tensors, "tensors"), (flat, "flat")],
        written=0,
        params=[scale],
        workspace=workspace,
        layout=layout,
        writes_tensors=True,
    )


def magnitude(a: Any, *, workspace: Workspace | None = None) -> Any:
    """The sum of the absolute values, in float64."""
    (total,) = _scalars(call("magnitude", [(a, "a")], written=0, workspace=workspace), 1)
    return total


def dots(
    a: Any, b: Any, *, scale_a: float = 1.0, scale_b: float = 1.0, workspace: Workspace | None = None
) -> tuple[Any, Any, Any]:
    """The sums a·b, a·a and b·b in one pass, in float64.

    Args:
        a: n elements.
        b: n elements.
        scale_a: a is multiplied by this, exactly if it is a power of two: squares of float32 numbers overflow at 1e19
            and vanish near 1e-23.
        scale_b: likewise for b.
        workspace: see :func:`damped_curvature`.
    """
    _reals(scale_a=scale_a, scale_b=scale_b)
    sums = call("dots", [(a, "a"), (b, "b")], written=0, params=[scale_a, scale_b], workspace=workspace)
    ab, aa, bb = _scalars(sums, 3)
    return ab, aa, bb


def get_num_threads() -> int:
    """The most CPU threads that an operation uses."""
    return int(_core.get_num_threads())


def set_num_threads(threads: int) -> None:
    """Set the most CPU threads that an operation uses; results do not depend on it.

    Raises:
        ValueError: not an integer of at least 1.
    """
    if not isinstance(threads, Integral) or not 1 <= threads <= 4096:
        raise ValueError(f"threads: {threads}; an integer of at least 1 (and at most 4096) is needed")
    _core.set_num_threads(int(threads))
