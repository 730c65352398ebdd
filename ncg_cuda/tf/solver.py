"""Conjugate gradients on tensors, inside a TensorFlow graph or eagerly: one entry, two paths.

The *op* path runs the fused passes of the native library through a TensorFlow custom op; in a function that XLA
compiles for the CPU, through custom calls of XLA. The *plain* path does the same arithmetic with ordinary TensorFlow
operations: it needs no compiled library and works everywhere, but moves each vector through memory several times as
often.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import tensorflow as tf

from .graphs import in_xla

logger = logging.getLogger("ncg_cuda")

Product = Callable[[list[Any]], Sequence[Any]]
"""The undamped product H·p: list of tensors -> list of tensors of the same shapes and dtype."""

PATHS = ("auto", "op", "plain")


@dataclass(frozen=True)
class Report:
    """How a solve ended: scalar tensors."""

    iterations: Any
    """int32: CG iterations made (updates of the direction)."""
    stop_reason: Any
    """int32: a :class:`ncg_cuda.StopReason`."""
    residual_norm: Any
    """float64: |b - (H + tau I) d|, as the recursion has it."""
    rhs_norm: Any
    """float64: |b|."""
    curvature: Any
    """float64: p·(H + tau I)p / p·p along the last search direction; 0 where no product was made."""
    drift: Any
    """float64: the largest relative difference between predicted and recomputed r·r. Rounding-sized, unless the product
    is not symmetric or not constant."""
    products: Any
    """int32: products with H made, which may be one more than the iterations."""


@dataclass(frozen=True)
class Dots:
    """The inner products of two vectors that were multiplied by powers of two, so that their squares are in range:
    float64 scalar tensors.
    """

    ab: Any
    """a·b of ``a_scale`` a and ``b_scale`` b."""
    aa: Any
    bb: Any
    a_scale: Any
    b_scale: Any


class Path(Protocol):
    """What a path's module has. Its vectors are its own matter: one flat tensor, or one tensor per variable."""

    def vector(self, tensors: Sequence[Any], *, negate: bool = False) -> Any:
        """A vector of the path from tensors of known shapes."""

    def tensors(self, vector: Any) -> list[Any]:
        """The other way about."""

    def solve(self, product: Product, b: Any, *, tau: Any, cg_tol: Any, max_iter: int) -> tuple[Any, Report]:
        """As the function :func:`solve`, on the path's vectors and with the arguments checked."""

    def dots(self, a: Any, b: Any) -> Dots:
        """The inner products."""

    def scaled(self, first: Any, a: Any, b: Any, scale: Any, factor: Any) -> Any:
        """``factor (scale a)`` if ``first`` is true, else ``factor (scale b)``; zeros where factor is 0, whatever the
        vectors hold. All but the vectors are scalar tensors.
        """


def solve(
    product: Product,
    b: Sequence[Any],
    *,
    tau: Any,
    cg_tol: Any,
    max_iter: int,
    path: str = "auto",
) -> tuple[list[Any], Report]:
    """Solve (H + tau I) d = b by conjugate gradients from d = 0, all tensors together as one vector.

    Args:
        product: H·p without damping; called inside a loop body, so it may only use tensors from outside and its
            argument.
        b: tensors of one dtype, float32 or float64, of fully known shapes.
        tau: damping, a number or scalar tensor >= 0.
        cg_tol: stop at a residual norm of ``cg_tol`` times the norm of b; a number or scalar tensor >= 0.
        max_iter: the largest number of iterations, an int >= 1.
        path: ``"auto"`` takes the custom op where it can, ``"op"`` insists on it, ``"plain"`` never uses it.

    Returns:
        The direction (tensors like b) and a :class:`Report`. On negative curvature the last iterate; in the first
        iteration the steepest-descent step scaled by the absolute curvature.

    Raises:
        ValueError: wrong tau, cg_tol, max_iter or path; no tensors; mixed or unsupported dtypes; unknown shapes; a
            product of other shapes or dtype.
        RuntimeError: ``path="op"`` where the op cannot be used; the message names the remedy.
    """
    tensors = [tf.convert_to_tensor(t) for t in b]
    check(tensors, tau, cg_tol, max_iter, path)
    run = choose(path)
    direction, report = run.solve(
        checked(product, tensors),
        run.vector(tensors),
        tau=as_float64(tau),
        cg_tol=as_float64(cg_tol),
        max_iter=max_iter,
    )
    return run.tensors(direction), report


def choose(path: str) -> Path:
    """The module of the path, or of the plain one where ``"auto"`` cannot use the op."""
    if path != "plain":
        why_not = _why_no_op()
        if why_not is None:
            from . import solver_op, solver_xla

            return solver_xla if in_xla() else solver_op
        if path == "op":
            raise RuntimeError(f"The custom op cannot be used here: {why_not}")
        _say_once(why_not)
    from . import solver_plain

    return solver_plain


def as_float64(value: Any) -> Any:
    """A scalar float64 tensor; tf.cast alone would round a Python number to float32 first."""
    return tf.cast(value, tf.float64) if tf.is_tensor(value) else tf.constant(value, tf.float64)


def check(tensors: list[Any], tau: Any, cg_tol: Any, max_iter: int, path: str) -> None:
    """Raise a ValueError for arguments of :func:`solve` that are wrong."""
    if path not in PATHS:
        raise ValueError(f"path={path!r} is not known; allowed: {', '.join(map(repr, PATHS))}")
    if not tensors:
        raise ValueError("b is empty: give at least one tensor")
    dtypes = sorted({t.dtype.name for t in tensors})
    if dtypes not in (["float32"], ["float64"]):
        raise ValueError(f"b has dtypes {dtypes}; allowed: all float32 or all float64. Cast the tensors to one of them")
    for i, t in enumerate(tensors):
        if not t.shape.is_fully_defined():
            raise ValueError(f"b[{i}] has the unknown shape {t.shape}; give tensors of fixed shapes (set_shape)")
    check_numbers(tau=tau, cg_tol=cg_tol, max_iter=max_iter)


def checked(product: Product, b: list[Any]) -> Product:
    """The product, refusing what does not look like b: a smaller result would be broadcast without an error."""

    def call(p: list[Any]) -> list[Any]:
        out = [tf.convert_to_tensor(t) for t in product(p)]
        if len(out) != len(b):
            raise ValueError(f"the product returned {len(out)} tensors for {len(b)}; one per tensor of b is needed")
        for i, (q, t) in enumerate(zip(out, b, strict=True)):
            if q.dtype != t.dtype or not q.shape.is_compatible_with(t.shape):
                raise ValueError(
                    f"the product's tensor {i} has shape {q.shape}, dtype {q.dtype.name}; b[{i}] has shape {t.shape}, "
                    f"dtype {t.dtype.name}, and both must be the same"
                )
            q.set_shape(t.shape)
        return out

    return call


def check_numbers(*, tau: Any, cg_tol: Any, max_iter: Any) -> None:
    """Raise a ValueError for a wrong parameter of the solve; tensors are taken as they are."""
    for name, value in (("tau", tau), ("cg_tol", cg_tol)):
        if tf.is_tensor(value):
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}={value!r} is not allowed: give a finite number >= 0")
    if isinstance(max_iter, bool) or not isinstance(max_iter, Integral) or max_iter < 1:
        raise ValueError(f"max_iter={max_iter!r} is not allowed: give an integer >= 1")


def _why_no_op() -> str | None:
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        return f"{replicas} replicas of a tf.distribute strategy take this step together, which the op cannot"
    try:
        from . import oplib, solver_xla

        if in_xla():
            return solver_xla.why_not()
        if oplib.load() is None:
            return oplib.why_not()
        return oplib.why_not_on_gpu() if tf.config.list_logical_devices("GPU") else None
    except ImportError as error:
        return f"this installation has no native library ({error})"


_said: set[str] = set()


def _say_once(why_not: str) -> None:
    if why_not not in _said:
        _said.add(why_not)
        logger.warning("CG runs on plain TensorFlow operations, the slow path: %s", why_not)
