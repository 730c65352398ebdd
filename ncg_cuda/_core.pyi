"""Native core: addresses in, kernels out. Private; ncg_cuda.ops checks every argument before it calls this."""

from collections.abc import Sequence
from typing import Protocol

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
openmp: bool
STREAM_SHAPES: tuple[tuple[int, int, int], ...]
damped_curvature: _Operation
cg_update: _Operation
weighted_step: _Operation
dots: _Operation

def partials_size(n: int, segment_count: int) -> int: ...
def state_fields() -> list[str]: ...
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
