"""One CG solve as passes over its own vectors. Nothing here waits for a GPU: that is left to who drives the passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import ops
from .adapter import Adapter
from .arrays import Operand, operand
from .calls import Workspace, call
from .layout import Layout
from .table import Table

Matvec = Callable[[Any], Any]


@dataclass(frozen=True)
class System:
    """(H + tau I) x = b, with H = sum of weight * matvec, and how far to go."""

    parts: Sequence[tuple[Matvec, float]]
    """Products and their weights: one part for a plain matvec, one for each micro-batch."""
    tau: float
    cg_tol: float
    max_iter: int
    layout: Layout | None = None
    bfloat16: bool = False
    """Whether products may come in bfloat16."""


class Solve:
    """The vectors x, r and p of a solve, its workspace, and its passes.

    Args:
        system: what to solve.
        arrays: the caller's arrays; b among them.
        b: right-hand side.
        m: the diagonal of the preconditioner's inverse, or None.
        x0: start, or None for zero.
        defer_x: move x in every second iteration only (not with a preconditioner).
    """

    def __init__(
        self, system: System, arrays: Adapter, b: Operand, m: Operand | None, x0: Operand | None, *, defer_x: bool
    ) -> None:
        self.system, self.arrays, self.m = system, arrays, m
        segments = 0 if system.layout is None else len(system.layout.shapes)
        self.workspace = Workspace(b, segments, arrays.memory)
        self._cleaned: list[tuple[Table, Operand]] = []
        self.b = self._without_padding(b)
        self.x0 = None if x0 is None else self._without_padding(x0)
        self.x, self.r, self.p = (self._vector(name) for name in "xrp")
        plain = len(system.parts) == 1 and system.parts[0][1] == 1.0
        self.acc = None if plain else self._vector("acc")
        self.update = "cg_update_deferred" if defer_x else "cg_update"
        self.products = 0

    def _vector(self, name: str) -> Operand:
        arrays = self.arrays
        return operand(arrays.memory.empty(arrays.size, arrays.dtype, arrays.device), name, written=True)

    def _without_padding(self, vector: Operand) -> Operand:
        """The caller's vector, or room for a copy with zeros between the tensors: products have nothing else there."""
        layout = self.system.layout
        if layout is None or layout.size != vector.size or layout.size == int(layout.lengths.sum()):
            return vector
        clean = self._vector(vector.name)
        self._cleaned.append((Table.of_views(vector, layout), clean))
        return clean

    def _pass(
        self,
        name: str,
        operands: Sequence[Operand | Table],
        *,
        written: int,
        params: Sequence[float] = (),
        in_solve: bool = True,
    ) -> None:
        call(
            name,
            [(o, o.name) for o in operands],
            written=written,
            params=params,
            workspace=self.workspace,
            in_solve=in_solve,
            layout=self.system.layout,
        )

    def begin(self) -> None:
        """Fill in the state block and the vectors."""
        s = self.system
        for views, clean in self._cleaned:
            self._direct("pack", [views, clean], [1.0, 1.0])
        self._pass("magnitude", [self.b], written=0, params=[s.tau, s.cg_tol, s.max_iter])
        vectors = [self.x, self.r, self.p]
        if self.x0 is not None:
            self._pass("cg_begin_from", [self.b, self.x0, *vectors], written=3)
            self.subtract_product()
            self._pass("cg_restart", [self.b, self.r, self.p], written=0)
        elif self.m is not None:
            self._pass("preconditioned_begin", [self.b, self.m, *vectors], written=3)
        else:
            self._pass("cg_begin", [self.b, *vectors], written=3)

    def subtract_product(self) -> None:
        """R -= (H + tau I) x where p is x; then p = r, preconditioned if need be: the residual of x."""
        hp = self.product(self.p)
        steps = [0.0, 1.0, 0.0, self.system.tau]  # alpha_x, alpha_r, beta, tau
        if self.m is None:
            self._direct("cg_update", [hp, self.x, self.r, self.p], steps, written=3)
        else:
            self._direct("preconditioned_update", [hp, self.m, self.x, self.r, self.p], steps, written=3)

    def iterate(self) -> None:
        """The products, pass A and pass B. Does nothing to the vectors once the state block says stop."""
        parts = self.system.parts
        if self.acc is None or self.m is not None or len(parts) == 1:
            hp = self.product(self.p)
            if self.m is None:
                self._pass("damped_curvature", [hp, self.p], written=0)
            else:
                self._pass("preconditioned_curvature", [hp, self.p, self.m], written=0)
        else:
            self._accumulate(parts[:-1], self.p)
            matvec, weight = parts[-1]  # the last part joins pass A
            last = self._part(matvec, self.p)
            self._pass("accumulate_curvature", [last, self.p, self.acc], written=1, params=[weight])
            hp = self.acc
        vectors = [self.x, self.r, self.p]
        if self.m is None:
            self._pass(self.update, [hp, *vectors], written=3)
        else:
            self._pass("preconditioned_update", [hp, self.m, *vectors], written=3)

    def finish(self) -> None:
        """The step that x still misses, and x in the caller's units."""
        self._pass("cg_finish", [self.r, self.p, self.x], written=1)

    def scaled(self, vector: Operand, factor: float) -> Operand:
        """A vector times a number, as a new vector."""
        out = self._vector(vector.name)
        self._direct("pack", [vector, out], [factor, 1.0])
        return out

    def residual(self, scale: float) -> Operand:
        """The true residual scale b - (H + tau I) x, by a product, as a new vector. x must be up to date."""
        true = self.scaled(self.b, scale)
        self._direct("accumulate", [self.product(self.x), true], [-1.0])
        self._direct("accumulate", [self.x, true], [-self.system.tau])
        return true

    def squares(self, r: Operand) -> tuple[float, float]:
        """R·z and r·r on the host, with z = M⁻¹ r."""
        if self.m is None:
            _, rr, _ = ops.dots(r, r, workspace=self.workspace)
            return float(rr), float(rr)
        _, rz, rr, _ = ops.preconditioned_curvature(r, r, self.m, workspace=self.workspace)
        return float(rz), float(rr)

    def replace_residual(self, true: Operand) -> None:
        """Put the true residual into the recursion: p += M⁻¹ (true - r), r = true."""
        if self.m is None:
            self._direct("cg_finish", [self.r, true, self.p], [1.0, 1.0])
        else:
            change = self.scaled(true, 1.0)
            self._direct("accumulate", [self.r, change], [-1.0])
            nothing = self.scaled(true, 0.0)  # alpha_x = alpha_r = 0, beta = 1: p = M^-1 change + p
            operands = [true, self.m, nothing, change, self.p]
            self._direct("preconditioned_update", operands, [0.0, 0.0, 1.0, 0.0], written=3)
        self.r = true

    def forget(self) -> None:
        """Back to the start: x = x0, or 0."""
        source, factor = (self.b, 0.0) if self.x0 is None else (self.x0, 1.0)
        self._direct("pack", [source, self.x], [factor, 1.0])

    def _direct(
        self, name: str, operands: Sequence[Operand | Table], params: Sequence[float], *, written: int = 1
    ) -> None:
        """An operation outside of the recursion."""
        self._pass(name, operands, written=written, params=params, in_solve=False)

    def product(self, p: Operand) -> Operand | Table:
        """H·p, undamped: as the matvec gave it, or the sum of its parts."""
        parts = self.system.parts
        if self.acc is None:
            return self._part(parts[0][0], p)
        self._accumulate(parts, p)
        return self.acc

    def _accumulate(self, parts: Sequence[tuple[Matvec, float]], p: Operand) -> None:
        assert self.acc is not None
        for i, (matvec, weight) in enumerate(parts):
            self._direct("accumulate" if i else "pack", [self._part(matvec, p), self.acc], [weight, 1.0])

    def _part(self, matvec: Matvec, p: Operand) -> Operand | Table:
        """What one matvec returns, checked."""
        lent = self.arrays.lend(p.array)
        version = self.arrays.version(lent)
        hp = matvec(lent)
        if self.arrays.version(lent) != version:
            raise ValueError("matvec: it has written to its argument, which is the solver's own; work on a copy of it")
        self.products += 1
        bfloat16, layout = self.system.bfloat16, self.system.layout
        if not isinstance(hp, (list, tuple)):
            return self._apart(self.arrays.product(hp, allow_bfloat16=bfloat16))
        if layout is None:
            raise TypeError("matvec: returned a sequence of arrays; give cg(..., layout=Layout(shapes)) for that")
        table = self.arrays.tensors(layout.checked(hp, "matvec"), layout, self.p, allow_bfloat16=bfloat16)
        shared = {i for vector in (self.x, self.r, self.p) for i in table.overlapping(vector)}
        if not shared:
            return table
        copies = [self.arrays.tensor_copy(part) if i in shared else part for i, part in enumerate(hp)]
        return self.arrays.tensors(copies, layout, self.p, allow_bfloat16=bfloat16)

    def _apart(self, hp: Operand) -> Operand:
        """The product, copied where it shares memory with a vector that pass B writes."""
        shared = any(hp.overlaps(vector) for vector in (self.x, self.r, self.p))
        return self.arrays.copied(hp) if shared else hp
