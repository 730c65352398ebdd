"""The system whose CG iterations are measured: its products are computed before, so that no product is timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .devices import Device
from .operations import clear_padding
from .sizes import Size

TAU = 0.1
LARGEST_ERROR = 0.25
"""Of a contender's solution (x = 0 has 1): plain float32 sums are off by percents, another system by far more."""
_SAMPLE = 97
_CHUNK = 1 << 22


class Problem:
    """(H + tau I) x = b with a diagonal H, and the products H p of its CG iterations, recorded from a solve with
    float64 sums. Contenders are fed these products, so that none stops early and all do the same work.

    Attributes:
        iterations: iterations that are timed, beyond the first one.
        b: right-hand side.
        diagonal: of H.
        products: H p of every iteration, flat; ``tensors`` gives one as a list.
        scratch: three vectors that a contender may use while it runs.
    """

    def __init__(self, device: Device, size: Size, iterations: int) -> None:
        xp = device.xp
        self.device, self.size, self.iterations, self.tau = device, size, iterations, TAU
        n = size.n
        self.diagonal = device.random(n, 1, 1.0, 30.0)
        self.b = device.random(n, 2, -1.0, 1.0)
        if size.layout is not None:
            clear_padding(size.layout, self.b)
        self.scratch = [device.empty(n) for _ in range(3)]
        self._damped: list[Any] = []
        self.products: list[Any] = []
        x, r, p = self.scratch
        x[...], r[...], p[...] = 0, self.b, self.b
        q = device.empty(n)
        rr = self._dot(r, r)
        for _ in range(1 + iterations):
            hp = device.empty(n)
            xp.multiply(self.diagonal, p, out=hp)
            self.products.append(hp)
            self._combine(q, hp, p, TAU)
            alpha = rr / self._dot(p, q)
            self._combine(x, x, p, alpha)
            self._combine(r, r, q, -alpha)
            rr, before = self._dot(r, r), rr
            self._combine(p, r, p, rr / before)
        self._truth = self._host(x[::_SAMPLE]).astype(np.float64)

    def _combine(self, out: Any, a: Any, b: Any, factor: float) -> None:
        """Out = a + factor b, piece by piece."""
        for begin in range(0, self.size.n, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            out[part] = a[part] + b[part] * np.float32(factor)

    def _dot(self, a: Any, b: Any) -> float:
        parts = (slice(begin, begin + _CHUNK) for begin in range(0, self.size.n, _CHUNK))
        return sum(float((a[part] * b[part]).sum(dtype=np.float64)) for part in parts)

    @property
    def flat(self) -> bool:
        """Whether a product comes as one vector."""
        return self.size.layout is None

    def tensors(self, vector: Any) -> list[Any]:
        """A flat vector as the tensors of the layout (or the only one), without copies."""
        return [vector] if self.size.layout is None else self.size.layout.views(vector)

    def damped(self) -> list[Any]:
        """(H + tau I) p of every iteration: for solvers that take a matvec and know no damping."""
        if not self._damped:
            for hp in self.products:
                q = self.device.empty(self.size.n)
                # H p = d p, so (H + tau I) p = (1 + tau / d) H p
                for begin in range(0, self.size.n, _CHUNK):
                    part = slice(begin, begin + _CHUNK)
                    q[part] = hp[part] + hp[part] / self.diagonal[part] * np.float32(TAU)
                self._damped.append(q)
        return self._damped

    def error(self, x: Any) -> float:
        """The relative error of a contender's solution: a flat vector or a list of tensors, of any library."""
        if isinstance(x, (list, tuple)):
            flat = np.concatenate([self._host(part).reshape(-1) for part in self._padded(x)])
        else:
            flat = self._host(x).reshape(-1)
        if flat.size != self.size.n:
            raise ValueError(f"the solution has {flat.size} elements instead of {self.size.n}")
        found = flat[::_SAMPLE].astype(np.float64)
        return float(np.linalg.norm(found - self._truth) / np.linalg.norm(self._truth))

    def _padded(self, tensors: Any) -> list[Any]:
        layout = self.size.layout
        if layout is None:
            return list(tensors)
        out: list[Any] = []
        ends = [*layout.offsets[1:], layout.size]
        for tensor, start, length, end in zip(tensors, layout.offsets, layout.lengths, ends, strict=True):
            out += [tensor, np.zeros(int(end - start - length), np.float32)]
        return out

    @staticmethod
    def _host(array: Any) -> Any:
        if hasattr(array, "get"):  # CuPy
            return array.get()
        if hasattr(array, "detach"):  # torch
            return array.detach().cpu().numpy()
        return np.asarray(array)
