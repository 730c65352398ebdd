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
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arrays import DTYPES, Operand, check_together, operand
from .dlpack import CPU
from .gpu_libraries import TORCH
from .immutable import Immutable
from .layout import Layout
from .libraries import NUMPY, Owner
from .streams import launch_for

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

    On a GPU, a workspace belongs to the stream that is current when it is made.

    Args:
        like: an operand of the calls to come: an array, or an :class:`Operand`.
        segments: the most tensors that ``hp`` will come in.
        library: whose memory it takes; by default that of ``like``.
    """

    def __init__(self, like: Any, segments: int = 0, library: Owner | None = None) -> None:
        o = like if isinstance(like, Operand) else operand(like, "like")
        if o.device == CPU:
            library = NUMPY
        elif library is None:
            library = o.library.memory(o.device, o.name) if isinstance(o.library, Immutable) else _owner(o)
        self.library, self.device, self.size = library, o.device, o.size
        fields = len(STATE_FIELDS)
        self._small = library.zeros(fields + _SUMS + 1, "float64", o.device)
        self.state, self.sums = self._small[:fields], self._small[fields : fields + _SUMS]
        self._partials = library.empty(_core.partials_size(o.size, segments), "float64", o.device)
        self.state_address = library.describe(self._small, None).address
        self.sums_address = self.state_address + 8 * fields
        self.addresses = {
            "partials": library.describe(self._partials, None).address,
            "ticket": self.sums_address + 8 * _SUMS,  # two uint32
        }

    def read_state(self) -> dict[str, float]:
        """The state block on the host; on a GPU, waits for the current stream."""
        return dict(zip(STATE_FIELDS, self.library.read(self.state), strict=True))

    def write_state(self, state: dict[str, float]) -> None:
        """Write the state block."""
        self.library.write(self.state, np.array([state[name] for name in STATE_FIELDS]))


def _owner(o: Operand) -> Owner:
    assert isinstance(o.library, Owner)
    return o.library


class Table:
    """A sequence of arrays, seen as one flat operand."""

    def __init__(
        self, tensors: Sequence[Any], name: str, layout: Layout | None, like: Operand, stream: int | None
    ) -> None:
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
            part = tensor if isinstance(tensor, Operand) else operand(tensor, f"{name}[{i}]", stream=stream)
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

    An operand is an array or an :class:`Operand`. The first one may be a sequence of arrays; the last ``written`` are
    written.
    """
    launch = launch_for(operands, written)
    stream = None if launch is None else launch.stream
    first, label = operands[0]
    tensors = first if isinstance(first, (list, tuple)) else None
    reads = len(operands) - written
    described = [
        array if isinstance(array, Operand) else operand(array, name, written=i >= reads, stream=stream)
        for i, (array, name) in enumerate(operands)
        if i > 0 or tensors is None
    ]
    like = described[-1]
    table = None if tensors is None else Table(tensors, label, layout, like, stream)
    check_together(described, written)
    if table is not None:
        for out in described[len(described) - written :] if written else []:
            for part in table.parts:
                if out.overlaps(part):
                    raise ValueError(
                        f"{out.name} and {part.name} overlap in memory, and {out.name} is written; copy one"
                    )
    segments = 0 if table is None else len(table.segments)
    if workspace is None:
        workspace = Workspace(like, segments, None if launch is None else launch.library)
    elif workspace.size != like.size or workspace.device != like.device:
        raise ValueError(
            f"workspace: made for {workspace.size} elements on {workspace.device}, but {like.name} has {like.size} on "
            f"{like.device}"
        )
    addresses = [d.address for d in described]
    if table is not None:
        addresses.insert(0, 0)
    where = {"segments": 0 if table is None else table.segments.ctypes.data, "segment_count": segments}
    sums = {"state": workspace.state_address} if in_solve else {"params": list(params), "out": workspace.sums_address}
    run = getattr(_core, name)
    if launch is None:
        run(False, DTYPES[like.dtype], like.size, addresses, **where, **sums, **workspace.addresses)
    else:
        _check_alignment(described)
        if workspace.library is not launch.library:
            raise ValueError(
                f"workspace: made by {workspace.library.name}, but the operation is queued on a stream of "
                f"{launch.library.name}, which the written arrays belong to; make one from one of them"
            )
        used = described if table is None else [*described, *table.parts]
        with launch.guard():
            launch.join(used)
            run(
                True, DTYPES[like.dtype], like.size, addresses, **where, **sums, **workspace.addresses,
                stream=launch.stream,
            )  # fmt: skip
            launch.part(used)
    for out in described[len(described) - written :] if written else []:
        if out.library is TORCH:
            TORCH.wrote(out.array)
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
