"""The fused operations on arrays: what :mod:`ncg_cuda.reference` specifies, run by the native engines.

Arrays are C-contiguous NumPy arrays (or CuPy arrays where the native core has a CUDA engine and there is a GPU; the
operation is then queued on CuPy's current stream and the sums come back as CuPy float64 scalars, without
synchronisation). Any shape is taken as flat; dtypes are float32 or float64, the same for all operands of a call.
``hp``, the product H·p, may also be a sequence of arrays, one per tensor of a model: it is then read where it stands,
as the flat vector of :class:`ncg_cuda.Layout` (tensors on multiples of 16 elements; the padding of the other operands
must be zero).

Float32 sums are added in float32 over at most 256 elements and in float64 beyond, in an order that depends on the
vector's length alone: the same bits for any number of threads, and whether ``hp`` is flat or a sequence.

Every function raises TypeError or ValueError, naming the argument, for a wrong type, dtype, size or device, an array
that is not contiguous, a read-only output, and an output that overlaps another operand.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arrays import CPU, DTYPES, Operand, check_together, namespace_of, operand
from .layout import Layout

CHUNK: int = _core.CHUNK
"""Elements that one block or one thread takes at a time."""

STATE_FIELDS: tuple[str, ...] = tuple(_core.state_fields())
"""The names of the float64 numbers in a solve's state block."""

VECTORS_MOVED: dict[str, int] = {name: sum(moved) for name, moved in _core.traffic().items()}
"""Vectors that one call of an operation reads and writes, as its functor declares them."""

# A forked child inherits OpenMP's state but none of its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=lambda: _core.set_num_threads(1))

_SUMS = 4  # of any operation


class Workspace:
    """Everything an operation needs beside its operands. A solve owns one; two solves that share none never meet.

    Args:
        like: an operand of the calls to come.
        segments: the most tensors that ``hp`` will come in.
    """

    def __init__(self, like: Operand, array: Any, segments: int = 0) -> None:
        xp = namespace_of(array)
        self.device = like.device
        self.size = like.size
        self.state = xp.zeros(len(STATE_FIELDS), dtype=np.float64)
        self.sums = xp.zeros(_SUMS, dtype=np.float64)
        self._partials = xp.empty(_core.partials_size(like.size, segments), dtype=np.float64)
        self._ticket = xp.zeros(2, dtype=np.uint32)
        self.addresses = {
            "partials": operand(self._partials, "workspace").address,
            "ticket": self._ticket.ctypes.data if like.device == CPU else self._ticket.data.ptr,
        }
        self.state_address = operand(self.state, "workspace").address
        self.sums_address = operand(self.sums, "workspace").address


class Table:
    """A sequence of arrays, seen as one flat operand."""

    def __init__(self, tensors: Sequence[Any], name: str, layout: Layout | None, like: Operand) -> None:
        if not tensors:
            raise ValueError(f"{name}: an empty sequence; give one array per tensor")
        if layout is None:
            layout = Layout([getattr(t, "shape", ()) for t in tensors])
        if len(tensors) != len(layout.shapes):
            raise ValueError(f"{name}: {len(tensors)} arrays, but the layout has {len(layout.shapes)} tensors")
        self.segments: NDArray[np.int64] = np.empty((len(tensors), 3), dtype=np.int64)  # ncg::Segment
        self.segments[:, 1] = layout.offsets
        self.segments[:, 2] = layout.lengths
        self.parts: list[Operand] = []
        for i, (tensor, length) in enumerate(zip(tensors, layout.lengths, strict=True)):
            if length == 0:
                self.segments[i, 0] = 0
                continue
            part = operand(tensor, f"{name}[{i}]")
            if part.size != length:
                raise ValueError(f"{part.name}: {part.size} elements, but the layout has {length}")
            if part.dtype != like.dtype:
                raise TypeError(
                    f"{part.name}: dtype {part.dtype}, but {like.name} has {like.dtype}; all must be the same"
                )
            if part.device != like.device:
                raise ValueError(
                    f"{part.name}: on {part.device}, but {like.name} is on {like.device}; move one of them"
                )
            self.segments[i, 0] = part.address
            self.parts.append(part)
        if like.size != layout.size:
            raise ValueError(
                f"{name}: its layout needs flat vectors of {layout.size} elements (tensors start on multiples of 16), "
                f"but {like.name} has {like.size}; make them by Layout(...).pack"
            )


def call(
    name: str,
    operands: Sequence[tuple[Any, str]],
    *,
    written: int,
    params: Sequence[float] = (),
    workspace: Workspace | None = None,
    in_solve: bool = False,
    layout: Layout | None = None,
) -> Any:
    """Check the operands and run one operation; the sums as an array, or None as a pass of a solve.

    The first of ``operands`` may be a sequence of arrays; the last ``written`` are written.
    """
    described = [
        operand(array, label, written=i >= len(operands) - written)
        for i, (array, label) in enumerate(operands)
        if i > 0 or not isinstance(array, (list, tuple))
    ]
    first, label = operands[0]
    table = None
    if isinstance(first, (list, tuple)):
        table = Table(first, label, layout, described[-1])
    check_together(described, written)
    if table is not None:
        for out in described[len(described) - written :] if written else []:
            for part in table.parts:
                if out.overlaps(part):
                    raise ValueError(
                        f"{out.name} and {part.name} overlap in memory, and {out.name} is written; copy one"
                    )
    like = described[-1]
    segments = 0 if table is None else len(table.segments)
    if workspace is None:
        workspace = Workspace(like, operands[-1][0], segments)
    elif workspace.size != like.size or workspace.device != like.device:
        raise ValueError(
            f"workspace: made for {workspace.size} elements on {workspace.device}, but {like.name} has {like.size} on "
            f"{like.device}"
        )
    addresses = [d.address for d in described]
    if table is not None:
        addresses.insert(0, 0)
    where: dict[str, Any] = {"segments": 0 if table is None else table.segments.ctypes.data, "segment_count": segments}
    sums = {"state": workspace.state_address} if in_solve else {"out": workspace.sums_address}
    where["params"] = list(params)
    run = getattr(_core, name)
    if like.device == CPU:
        run(False, DTYPES[like.dtype], like.size, addresses, **where, **sums, **workspace.addresses)
    else:
        _check_alignment(described)
        import cupy

        with cupy.cuda.Device(int(like.device.partition(":")[2])):
            stream = cupy.cuda.get_current_stream().ptr
            run(True, DTYPES[like.dtype], like.size, addresses, **where, **sums, **workspace.addresses, stream=stream)
    return None if in_solve else workspace.sums


def _check_alignment(operands: list[Operand]) -> None:
    for o in operands:
        if o.address % 16:
            raise ValueError(
                f"{o.name}: its memory starts at {o.address:#x}, not on a multiple of 16 bytes; pass a copy"
            )


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
    call("pack", operands, written=1, params=[scale], workspace=workspace, layout=layout)


def magnitude(a: Any, *, workspace: Workspace | None = None) -> Any:
    """The sum of the absolute values, in float64."""
    (total,) = _scalars(call("magnitude", [(a, "a")], written=0, workspace=workspace), 1)
    return total


def dots(a: Any, b: Any, *, workspace: Workspace | None = None) -> tuple[Any, Any, Any]:
    """The sums a·b, a·a and b·b in one pass, in float64."""
    sums = call("dots", [(a, "a"), (b, "b")], written=0, workspace=workspace)
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
