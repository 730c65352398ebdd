"""Numerical checks of Hessian products at one point: differences over several steps, and what they are worth.

A single finite difference cannot be trusted: rounding spoils small steps, curvature and kinks (ReLU, max) large ones.
So differences are taken over a ladder of steps. Two neighbours that agree say how exact they are; a product is called
wrong only where such a pair disagrees with it by far more than with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from .curvature import HessianOperator, gradient
from .graphs import ancestors, graph_chain, nested_functions, raw_variable
from .objective import RecordingScope, stateful_randomness
from .resizing import resized_in_float64
from .single import in_single
from .stops import held_stops

OK, WRONG, NOT_TWICE, UNSURE = "ok", "wrong", "not twice differentiable", "unsure"
HELD = "ok with stops held"

_KINKED = {
    "Abs", "ClipByValue", "Elu", "LeakyRelu", "Max", "MaxPool", "MaxPool3D", "MaxPoolV2", "MaxPoolWithArgmax",
    "Maximum", "Min", "Minimum", "Relu", "Relu6", "SegmentMax", "Selu", "Sign", "TopKV2",
    "UnsortedSegmentMax",
}  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """What can be expected of differences in one floating-point type.

    Attributes:
        steps: the ladder, each a quarter of the one before, relative to the size of the weights.
        fine: how the ladder goes on where kinks spoil all of it: an interval that is short enough has none.
        tolerance: relative error that always counts as agreement.
        trusted: largest relative difference of two neighbours that says anything.
        floor: part of the whole product below which a variable's part counts as zero.
        symmetry: tolerance of s·Ht = t·Hs.
        extrapolated: whether two neighbours make one difference of fourth order, so that steps can be long.
        rounded: whether rounding spoils the steps that are short enough to cross few kinks.
    """

    steps: tuple[float, ...]
    fine: tuple[float, ...]
    tolerance: float
    trusted: float
    floor: float
    symmetry: float
    extrapolated: bool = False
    rounded: bool = False


PRECISION = {
    tf.float64: Precision(
        tuple(4.0**-k for k in range(5, 13)), tuple(4.0**-k for k in range(13, 17)), 1e-6, 1e-2, 1e-6, 1e-8
    ),
    tf.float32: Precision(tuple(4.0**-k for k in range(1, 6)), (), 1e-2, 5e-2, 1e-2, 1e-3, rounded=True),
}

PARTLY_SINGLE = Precision(
    tuple(4.0**-k for k in range(1, 8)), (), 1e-4, 1e-3, 1e-2, 1e-4, extrapolated=True, rounded=True
)
"""float64 with an operation in between that TensorFlow computes in float32: the tolerance of the layer table."""

PRODUCT_PARTLY_SINGLE = replace(PRECISION[tf.float64], tolerance=1e-4, floor=1e-2, symmetry=1e-4)
"""The same where that concerns the product only, and the differences are all in float64."""


@dataclass(frozen=True)
class Finding:
    """One variable's part of the product: its relative error, and the verdict."""

    error: float
    verdict: str


@dataclass(frozen=True)
class Probe:
    """What :func:`probe` found.

    Attributes:
        findings: one per variable.
        asymmetry: |s·Ht - t·Hs| relative to the larger of them.
        kinks: whether the loss runs through operations with kinks.
        refusal: why there is no product at all; empty otherwise.
        precision: what was expected of the differences.
        single: the operations that TensorFlow computes in float32 for float64 variables.
    """

    findings: list[Finding]
    asymmetry: float
    kinks: bool
    refusal: str = ""
    precision: Precision = PRECISION[tf.float64]
    single: Sequence[str] = ()


def probe(loss_fn: Callable[[], Any], variables: Sequence[Any], seed: int) -> Probe:
    """Compare products with the Hessian of ``loss_fn()`` with differences of its gradient, at the values now.

    Variables are put back; assignments to Keras variables inside ``loss_fn`` are not made, so that every evaluation
    draws the same random numbers.

    Raises:
        ValueError: the loss or its gradient cannot be computed, or it draws random numbers that cannot be repeated.
    """
    raw = [raw_variable(v) for v in variables]
    kinks = False
    single: list[str] = []

    def differentiated() -> Callable[[], list[Any]]:
        @tf.function(autograph=False)  # type: ignore[untyped-decorator]
        def gradient_now() -> list[Any]:
            nonlocal kinks, single
            with RecordingScope():
                loss, known = gradient(loss_fn, raw)
            refusal = stateful_randomness(loss)
            if refusal:
                raise ValueError(f"check_curvature cannot compare two evaluations of this loss: {refusal}")
            ops = ancestors([loss])
            kinks = not _KINKED.isdisjoint(
                {o.type for o in ops} | {n.op for f in nested_functions(ops) for n in f.node_def}
            )
            single = in_single([loss, *known], raw) if raw[0].dtype == tf.float64 else []
            return [tf.zeros(v.shape, v.dtype) if g is None else g for g, v in zip(known, raw, strict=True)]

        gradient_now()
        made: Callable[[], list[Any]] = gradient_now
        return made

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def products(s: list[Any], t: list[Any]) -> tuple[list[Any], list[Any]]:
        assert graph_chain()
        with RecordingScope():
            operator = HessianOperator(loss_fn, variables)
        return operator.product(s), operator.product(t)

    s, t = _directions(raw, seed), _directions(raw, seed + 1)
    gradient_now = differentiated()
    precision, named = PRECISION[raw[0].dtype], single
    if named:
        # The product is that of the operations as they are; the differences need all the digits they can get.
        precision = PARTLY_SINGLE
        with resized_in_float64(), suppress(TypeError, ValueError, tf.errors.OpError):
            exact = differentiated()
            if not single:
                gradient_now, precision = exact, PRODUCT_PARTLY_SINGLE
    try:
        of_s, of_t = ([np.asarray(p, "float64") for p in ps] for ps in products(s, t))
    except (ValueError, LookupError, NotImplementedError, tf.errors.OpError) as error:
        return Probe([Finding(float("nan"), NOT_TWICE)] * len(raw), float("nan"), kinks, str(error), precision, named)
    differences = [_difference(gradient_now, raw, s, step) for step in precision.steps]
    if precision.extrapolated:
        # Each step is a quarter of the one before, and the error grows with its square.
        differences = [[(16 * n - f) / 15 for f, n in zip(*pair, strict=True)] for pair in pairwise(differences)]
    whole = float(np.sqrt(sum(np.sum(p**2) for p in of_s)))

    def judge() -> list[Finding]:
        return [_judge(p, [d[i] for d in differences], whole, precision, kinks) for i, p in enumerate(of_s)]

    findings = judge()
    if kinks and any(f.verdict != OK for f in findings):
        differences += [_difference(gradient_now, raw, s, step) for step in precision.fine]
        findings = judge()
    a, b = _dot(s, of_t), _dot(t, of_s)
    size = max(abs(a), abs(b), 1e-3 * whole * float(np.sqrt(_dot(t, t))), np.finfo(float).tiny)
    return Probe(findings, abs(a - b) / size, kinks, precision=precision, single=named)


def probe_with_stops(loss_fn: Callable[[], Any], variables: Sequence[Any], seed: int) -> Probe:
    """:func:`probe`; a part that is wrong, but right with all values of ``stop_gradient`` held, is called so."""
    found = probe(loss_fn, variables, seed)
    if not any(f.verdict == WRONG for f in found.findings):
        return found
    with held_stops() as values:
        try:
            with RecordingScope():
                loss_fn()
            held = probe(loss_fn, variables, seed) if values else found
        except RuntimeError:
            held = found
    findings = [
        Finding(h.error, HELD) if f.verdict == WRONG and h.verdict == OK else f
        for f, h in zip(found.findings, held.findings, strict=True)
    ]
    return replace(found, findings=findings)


def _judge(product: Any, differences: list[Any], whole: float, precision: Precision, kinks: bool) -> Finding:
    def norm(x: Any) -> float:
        return float(np.linalg.norm(np.ravel(x)))

    size = max(norm(product), min(map(norm, differences)), precision.floor * whole, np.finfo(float).tiny)
    errors = np.array([norm(d - product) for d in differences]) / size
    spread = np.array([norm(a - b) for a, b in pairwise(differences)]) / size
    if not (np.isfinite(errors).all() and np.isfinite(spread).all()):
        return Finding(float("nan"), UNSURE)
    if errors.min() <= precision.tolerance:
        return Finding(float(errors.min()), OK)
    # Steps that cross many kinks agree with each other on the curvature of a smoothed loss; small steps cross few.
    first = len(spread) // 2 if kinks else 0
    best = first + int(np.argmin(spread[first:]))
    error, noise = float(errors[best + 1]), float(spread[best])
    if noise > precision.trusted:
        return Finding(error, UNSURE)
    if error <= max(precision.tolerance, 10 * noise):
        return Finding(error, OK)
    return Finding(error, UNSURE if kinks and precision.rounded else WRONG)


def _directions(raw: Sequence[Any], seed: int) -> list[Any]:
    """Random, each variable's part in proportion to its size."""
    rng = np.random.default_rng(seed)
    out = []
    for v in raw:
        value = v.numpy()
        size = max(float(np.sqrt(np.mean(np.square(value, dtype="float64")))) if value.size else 0.0, 0.1)
        out.append((size * rng.normal(size=value.shape)).astype(value.dtype))
    return out


def _difference(gradient_now: Callable[[], Any], raw: Sequence[Any], s: Sequence[Any], step: float) -> list[Any]:
    start = [v.numpy() for v in raw]
    found = []
    try:
        for a in (step, -step):
            for v, w, d in zip(raw, start, s, strict=True):
                v.assign(w + np.asarray(a, w.dtype) * d)
            found.append([np.asarray(g, "float64") for g in gradient_now()])
    finally:
        for v, w in zip(raw, start, strict=True):
            v.assign(w)
    return [(p - m) / (2 * step) for p, m in zip(*found, strict=True)]


def _dot(a: Sequence[Any], b: Sequence[Any]) -> float:
    return float(sum(np.sum(np.asarray(x, "float64") * np.asarray(y, "float64")) for x, y in zip(a, b, strict=True)))
