"""How an operation is called: its workspace, a table of tensors as one operand, the checks, and the launch."""

from __future__ import annotations

from collections.abc import Sequence
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
from .streams import Launch, launch_for
from .table import Table, check_first_dtype

STATE_FIELDS: tuple[str, ...] = tuple(_core.state_fields())
"""The names of the float64 numbers in a solve's state block."""

TAKE_TENSORS: frozenset[str] = frozenset(_core.take_tensors())
"""Operations whose first operand may be a sequence of tensors, or bfloat16, or both."""

INLINE_SEGMENTS: int = _core.INLINE_SEGMENTS
"""Tensors that fit into the arguments of one launch; longer tables are copied to the GPU."""

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
        self.library, self.device, self.size, self.segments = library, o.device, o.size, segments
        self._captured: dict[bytes, Any] = {}
        self._host_tables: list[NDArray[np.int64]] = []
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

    def captured(self, segments: NDArray[np.int64]) -> int:
        """Keep a long table for a graph, if one is being captured; its address in device memory, or 0 where the launch
        has to copy it.

        A graph would copy it from the host's memory at every launch, and in the body of a loop it must not do so at
        all: so it is put into device memory now, beside the stream that is capturing.
        """
        if not self.library.capturing(self.device):
            return 0
        key = segments.tobytes()
        if key not in self._captured:
            there = self.library.constant(segments, self.device)
            if there is None:
                self._host_tables.append(segments)  # each one: its own address is what the graph knows
                return 0
            self._captured[key] = there
        return int(self.library.describe(self._captured[key], None).address)

    def read_state(self) -> dict[str, float]:
        """The state block on the host; on a GPU, waits for the current stream."""
        return dict(zip(STATE_FIELDS, self.library.read(self.state), strict=True))

    def write_state(self, state: dict[str, float]) -> None:
        """Write the state block."""
        self.library.write(self.state, np.array([state[name] for name in STATE_FIELDS]))


def _owner(o: Operand) -> Owner:
    assert isinstance(o.library, Owner)
    return o.library


def call(
    name: str,
    operands: Sequence[tuple[Any, str]],
    *,
    written: int,
    params: Sequence[float] = (),
    workspace: Workspace | None = None,
    in_solve: bool = False,
    layout: Layout | None = None,
    writes_tensors: bool = False,
) -> Any:
    """Check the operands and run one operation; the sums as an array, or None as a pass of a solve.

    An operand is an array or an :class:`Operand`. The last ``written`` are written. Where the operation takes tensors,
    the first one may be a sequence of arrays or a :class:`Table`, or bfloat16 beside float32; ``writes_tensors``: it is
    what is written.
    """
    launch = launch_for(operands, written)
    stream = None if launch is None else launch.stream
    first, label = operands[0]
    flat_first = not isinstance(first, (list, tuple, Table))
    reads = len(operands) - written
    bfloat16 = name in TAKE_TENSORS
    described = [
        array
        if isinstance(array, Operand)
        else operand(array, name, written=i >= reads, stream=stream, allow_bfloat16=bfloat16 and i == 0)
        for i, (array, name) in enumerate(operands)
        if i > 0 or flat_first
    ]
    like = described[-1]
    table = None
    if not flat_first:
        table = first if isinstance(first, Table) else Table(first, label, layout, like, stream, written=writes_tensors)
    elif bfloat16:
        check_first_dtype(described[0], like)
    outputs = described[len(described) - written :]
    check_together(described, written)
    if table is not None:
        for vector in described if writes_tensors else outputs:
            table.check_apart(vector, writes_tensors=writes_tensors)
        if writes_tensors:
            table.check_apart_from_each_other()
    parts = [] if table is None else table.parts
    workspace = _workspace(workspace, like, 0 if table is None else len(table.segments), launch)
    narrow = (described[0] if table is None else table).dtype == "bfloat16"
    dtype = DTYPES["bfloat16" if narrow else like.dtype]
    addresses = [d.address for d in described]
    arguments: dict[str, Any] = {"params": list(params), **workspace.addresses}
    if table is not None:
        addresses.insert(0, 0)
        arguments |= {"segments": table.segments.ctypes.data, "segment_count": len(table.segments)}
    if in_solve:
        arguments["state"] = workspace.state_address
    else:
        arguments["out"] = workspace.sums_address
    run = getattr(_core, name)
    if launch is None:
        run(False, dtype, like.size, addresses, **arguments)
    else:
        _check_alignment(described)
        used = [*described, *parts]
        with launch.guard():
            launch.join(used)
            if table is not None and len(table.segments) > INLINE_SEGMENTS:
                arguments["device_segments"] = workspace.captured(table.segments)
            run(True, dtype, like.size, addresses, **arguments, stream=launch.stream)
            launch.part(used)
    for out in parts if writes_tensors else outputs:
        if out.library is TORCH:
            TORCH.wrote(out.array)
    return None if in_solve else workspace.sums


def _workspace(workspace: Workspace | None, like: Operand, segments: int, launch: Launch | None) -> Workspace:
    """The caller's workspace, if it will do, or a new one."""
    library = None if launch is None else launch.library
    if workspace is None:
        if library is not None and library.capturing(like.device):
            raise ValueError(
                "workspace: none is given while a CUDA graph is captured, and a new one would not live as long as the "
                "graph; make one by ncg_cuda.ops.Workspace(...) and keep it"
            )
        return Workspace(like, segments, library)
    if not isinstance(workspace, Workspace):
        raise TypeError(f"workspace: got {type(workspace).__name__}; give an ncg_cuda.ops.Workspace")
    if workspace.size != like.size or workspace.device != like.device:
        raise ValueError(
            f"workspace: made for {workspace.size} elements on {workspace.device}, but {like.name} has {like.size} on "
            f"{like.device}"
        )
    if library is not None and workspace.library is not library:
        raise ValueError(
            f"workspace: made by {workspace.library.name}, but the operation is queued on a stream of {library.name}, "
            "which the written arrays belong to; make one from one of them"
        )
    if library is not None and segments > max(workspace.segments, INLINE_SEGMENTS):
        raise ValueError(
            f"workspace: made for {workspace.segments} tensors, but {segments} are given; make it by Workspace(..., "
            f"segments={segments})"
        )
    return workspace


def _check_alignment(operands: list[Operand]) -> None:
    for o in operands:
        if not o.aligned:
            raise ValueError(
                f"{o.name}: its memory starts at {o.address:#x}, not on a multiple of {o.alignment} bytes; pass a copy"
            )
