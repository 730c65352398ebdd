"""Native core: addresses in, kernels out. Private; ncg_cuda.ops checks every argument before it calls this."""

from collections.abc import Sequence
from typing import Any, Protocol

class _Operation(Protocol):
    def __call__(
        self,
        on_gpu: bool,
        dtype: int,
        n: int,
        operands: Sequence[int],
        *,
        segments: int = 0,
        segment_count: int = 0,
        state: int = 0,
        params: Sequence[float] = ...,
        out: int = 0,
        partials: int = 0,
        ticket: int = 0,
        stream: int = 0,
    ) -> None: ...

CHUNK: int
LANES: int
INLINE_SEGMENTS: int
openmp: bool
STREAM_SHAPES: tuple[tuple[int, int, int], ...]
accumulate: _Operation
accumulate_curvature: _Operation
cg_begin: _Operation
cg_begin_from: _Operation
cg_finish: _Operation
cg_restart: _Operation
cg_update: _Operation
cg_update_deferred: _Operation
damped_curvature: _Operation
dots: _Operation
magnitude: _Operation
pack: _Operation
preconditioned_begin: _Operation
preconditioned_curvature: _Operation
preconditioned_update: _Operation
unpack: _Operation
weighted_step: _Operation

def partials_size(n: int, segment_count: int) -> int: ...
def loop_open(stream: int, body: int, state: int) -> int: ...
def loop_close(body: int, state: int, handle: int) -> None: ...
def describe_ndarray(array: Any) -> tuple[int, int, str, bool, bool]: ...
def addresses_of_ndarrays(tensors: Sequence[Any], lengths: Any, dtype: str, written: bool) -> Any: ...
def read_capsule(capsule: Any) -> tuple[int, int, str, int, int, bool, bool]: ...
def state_fields() -> list[str]: ...
def take_tensors() -> list[str]: ...
def traffic() -> dict[str, tuple[int, int]]: ...
def cuda_status() -> tuple[str | None, int, str]: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def stream(
    on_gpu: bool,
    reads: int,
    writes: int,
    operands: Sequence[int],
    n: int,
    *,
    scale: float,
    sum: int,
    variant: int,
    threads: int = 1,
    stream: int = 0,
) -> None: ...
def copy(source: int, target: int, n: int, *, variant: int, threads: int = 1) -> None: ...
