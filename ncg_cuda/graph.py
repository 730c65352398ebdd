"""A whole solve as one CUDA graph: launched again and again, with no work of the host per iteration."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from . import _core
from .adapter import Adapter
from .conjugate_gradient import check_system
from .dlpack import CPU
from .layout import Layout
from .libraries import label
from .result import CGResult
from .solve import Matvec, Solve

LOOPS = ("device", "unrolled")


class GraphCG:
    """Conjugate gradients on (H + tau I) x = b, captured once as a CUDA graph on CuPy arrays.

    The matvec is captured, too: it must queue all its work on CuPy's current stream, always the same work on the same
    arrays, and must not wait for the GPU or read from it. It is called twice or more while this is made, and never
    again. An array that it reads may get new values between launches, in place.

    Args:
        matvec: as for :func:`ncg_cuda.cg`.
        b: right-hand side, a CuPy array; copied.
        tau: damping, >= 0; fixed, as are all the settings that follow.
        cg_tol: stop at residual norm <= cg_tol * |b|.
        max_iter: most iterations.
        preconditioner: as for cg; copied.
        weights: as for cg.
        layout: as for cg.
        bfloat16: as for cg.
        loop: ``"device"``: a WHILE node of the graph repeats the iteration until the solve stops (CUDA 12.4 or later).
            ``"unrolled"``: ``max_iter`` iterations in a row, of which those after the stop cost their products.

    Raises:
        TypeError: b is no CuPy array; otherwise as cg.
        ValueError: as cg; an unknown loop.
        RuntimeError: the matvec cannot be captured, or CUDA is too old for the loop.

    Example::

        solver = GraphCG(lambda p: h @ p, b, tau=0.1, max_iter=50)
        x = solver.launch().x  # for b
        x = solver.launch(another_b).x
    """

    def __init__(
        self,
        matvec: Matvec | Sequence[Matvec],
        b: Any,
        *,
        tau: float = 0.0,
        cg_tol: float = 1e-5,
        max_iter: int = 20,
        preconditioner: Any = None,
        weights: Sequence[float] | None = None,
        layout: Layout | None = None,
        bfloat16: bool = False,
        loop: str = "device",
    ) -> None:
        if loop not in LOOPS:
            raise ValueError(f"loop: {loop!r}; give one of {', '.join(map(repr, LOOPS))}")
        system = check_system(matvec, weights, tau, cg_tol, max_iter, layout, bfloat16)
        arrays = Adapter(b, "b")
        if arrays.library.name != "cupy" or arrays.device == CPU:
            raise TypeError(f"b: got {label(b)} on {arrays.device}; a graph needs CuPy arrays (cupy.from_dlpack)")
        self._cupy: Any = sys.modules["cupy"]
        # A pool of its own: what the matvec allocates while it is captured belongs to the graph as long as that lives.
        self._pool = self._cupy.cuda.MemoryPool()
        with arrays.guard(), self._cupy.cuda.using_allocator(self._pool.malloc):
            stream = self._cupy.cuda.Stream(non_blocking=True)
            stream.wait_event(self._cupy.cuda.get_current_stream().record())
            with stream:
                self._b = arrays.memory.copy(arrays.vector(arrays.operand)).reshape(arrays.shape)
                m = None if preconditioner is None else arrays.copied(arrays.start(preconditioner, "preconditioner"))
                arrays = Adapter(self._b, "b")
                self._solve = Solve(system, arrays, arrays.operand, m, None, defer_x=m is None)
                self._solve.begin()
                self._solve.iterate()  # not captured: CuPy compiles its kernels
            stream.synchronize()
            self._graph = self._capture(stream, loop)
        self._done: Any = None

    def _capture(self, stream: Any, loop: str) -> Any:
        solve = self._solve
        with stream:
            stream.begin_capture()
            try:
                solve.begin()
                if loop == "unrolled":
                    for _ in range(solve.system.max_iter):
                        solve.iterate()
                else:
                    self._loop(stream)
                solve.finish()
            except BaseException:
                self._abandon(stream)
                raise
            return stream.end_capture()

    def _loop(self, stream: Any) -> None:
        body = self._cupy.cuda.Stream(non_blocking=True)
        state = self._solve.workspace.state_address
        handle = _core.loop_open(stream.ptr, body.ptr, state)
        try:
            with body:
                self._solve.iterate()
        except BaseException:  # the body must not stay capturing; what the caller sees is why it failed
            with contextlib.suppress(RuntimeError):
                _core.loop_close(body.ptr, state, handle)
            raise
        _core.loop_close(body.ptr, state, handle)

    def _abandon(self, stream: Any) -> None:
        # what the caller sees is why the capture failed
        with contextlib.suppress(self._cupy.cuda.runtime.CUDARuntimeError):
            stream.end_capture()

    def launch(self, b: Any = None) -> CGResult:
        """Queue the solve on CuPy's current stream, for a new b if one is given; returns at once.

        Returns:
            A :class:`CGResult` whose numbers are read when asked for. It and its x are valid until the next launch.

        Raises:
            ValueError: b of another shape, dtype or device than the first one.
        """
        arrays = self._solve.arrays
        with arrays.guard():
            arrays.wait(self._done)  # for the launch before, which may be on another stream
            if b is not None:
                arrays.start(b, "b")
                self._cupy.copyto(self._b, b.reshape(arrays.shape))
            self._graph.launch(stream=self._cupy.cuda.get_current_stream())
            self._done = arrays.mark()
        return CGResult(arrays.give(self._solve.x.array), self._solve, products=None, done=self._done)
