"""What the TensorFlow op computes on a device, and the same by float64 NumPy: the cases of the GPU check and its tests.

Every case gives a dict of NumPy arrays; :func:`differences` compares two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import transfers

from ncg_cuda import Layout, reference
from ncg_cuda.tf import NewtonCG, oplib, solver

DTYPES = ("float32", "float64")
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "odd sizes": [(7, 5), (13,), (), (40, 3), (0,), (3, 3, 1, 2), (4100,)],
    "around a chunk": [(4095,), (4097,), (4096,), (1,), (16,)],
    "one number": [()],
    "161 tensors": [(i % 29 + 1, 3) for i in range(161)],
    "200 tensors": [(i % 37 + 1,) for i in range(200)],
}
LARGE: list[tuple[int, ...]] = [(1000, 1003), (3, 3, 64, 65), (2_000_003,), (5,)]
ITERATIONS = 6
TAU = 0.1


def tensors_of(shapes: list[tuple[int, ...]], dtype: str, seed: int) -> list[np.ndarray]:
    """Normal random numbers, one array per shape."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s), dtype) for s in shapes]


def spectrum(shapes: list[tuple[int, ...]], dtype: str, shift: float = 0.0) -> list[np.ndarray]:
    """The diagonal of a matrix: numbers between 1 and 30, shifted."""
    rng = np.random.default_rng(5)
    return [np.asarray(rng.uniform(1.0, 30.0, s) + shift, dtype) for s in shapes]


def packing(device: str, shapes: list[tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """Packed, packed with the other sign, and the views of that."""
    lib = oplib.load()
    with tf.device(device):
        tensors = [tf.constant(t) for t in tensors_of(shapes, dtype, 0)]
        flat = lib.ncg_pack(tensors=tensors)
        negated = lib.ncg_pack(tensors=tensors, negate=True)
        views = lib.ncg_views(negated, shapes=shapes, N=len(shapes))
        joined = tf.concat([tf.reshape(v, [-1]) for v in views], 0)
    return {"packed": flat.numpy(), "negated": negated.numpy(), "views": joined.numpy()}


def packing_truth(shapes: list[tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """As :func:`packing`, by NumPy."""
    tensors = tensors_of(shapes, dtype, 0)
    flat = Layout(shapes).pack(tensors)
    return {"packed": flat, "negated": -flat, "views": -np.concatenate([t.ravel() for t in tensors])}


SCALES = (2.0**-100, 2.0**90)
"""Of the two vectors of :func:`summing`: their squares leave the range of float32."""


def summing(device: str, shapes: list[tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """Magnitude, inner products, and multiples of one vector or the other; also of vectors that are not finite."""
    lib = oplib.load()
    with tf.device(device):
        a, b = (
            lib.ncg_pack(tensors=[tf.constant(t * np.asarray(scale, dtype)) for t in tensors_of(shapes, dtype, seed)])
            for seed, scale in zip((2, 3), SCALES, strict=True)
        )
        nan = a * float("nan")
        found = {
            "magnitude": lib.ncg_magnitude(a),
            "dots": lib.ncg_dots(a, b, 1.0 / SCALES[0], 1.0 / SCALES[1]),
            "first": lib.ncg_scaled(a, b, True, 2.0, 3.0),
            "second": lib.ncg_scaled(nan, b, False, 1.0 / SCALES[1], 0.5),
            "none": lib.ncg_scaled(nan, b, True, 1.0, 0.0),
        }
    return {name: value.numpy() for name, value in found.items()}


def summing_truth(shapes: list[tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """As :func:`summing`, by NumPy."""
    layout = Layout(shapes)
    a, b = (layout.pack([t.astype(np.float64) for t in tensors_of(shapes, dtype, seed)]) for seed in (2, 3))
    return {
        "magnitude": np.array(np.abs(a).sum() * SCALES[0]),
        "dots": np.array(reference.dots(a, b)),
        "first": 6.0 * a * SCALES[0],
        "second": 0.5 * b,
        "none": np.zeros(a.size),
    }


def solve_function(
    device: str, shapes: list[tuple[int, ...]], dtype: str, *, iterations: int, shift: float = 0.0, path: str = "op"
) -> tuple[Callable[..., Any], tuple[Any, Any]]:
    """A solve with a diagonal matrix, as a Python function that a ``tf.function`` may wrap, and its arguments."""

    def solve(b: list[Any], diagonal: list[Any]) -> Any:
        with tf.device(device):
            x, report = solver.solve(
                lambda p: [d * v for d, v in zip(diagonal, p, strict=True)],
                b,
                tau=TAU,
                cg_tol=1e-12,
                max_iter=iterations,
                path=path,
            )
            direction = tf.concat([tf.reshape(t, [-1]) for t in x], 0)
        return direction, report.iterations, report.stop_reason, report.residual_norm, report.rhs_norm

    with tf.device(device):
        b = [tf.constant(t) for t in tensors_of(shapes, dtype, 1)]
        diagonal = [tf.constant(t) for t in spectrum(shapes, dtype, shift)]
    return solve, (b, diagonal)


def solving(
    device: str, shapes: list[tuple[int, ...]], dtype: str, *, shift: float = 0.0, graph: bool = True
) -> dict[str, np.ndarray]:
    """A few iterations of the op on the device: the direction and how the solve ended."""
    solve, arguments = solve_function(device, shapes, dtype, iterations=ITERATIONS, shift=shift)
    run = tf.function(solve, autograph=False) if graph else solve
    x, iterations, stop, *norms = run(*arguments)
    return {"x": x.numpy(), "ended": np.array([iterations, stop]), "norms": np.array(norms)}


def solving_truth(shapes: list[tuple[int, ...]], dtype: str, *, shift: float = 0.0) -> dict[str, np.ndarray]:
    """As :func:`solving`, by the float64 reference."""
    b = np.concatenate([t.ravel() for t in tensors_of(shapes, dtype, 1)]).astype(np.float64)
    diagonal = np.concatenate([t.ravel() for t in spectrum(shapes, dtype, shift)]).astype(np.float64)
    x, state = reference.cg(lambda p: diagonal * p, b, tau=TAU, cg_tol=1e-12, max_iter=ITERATIONS)
    return {
        "x": x,
        "ended": np.array([state.iteration, int(state.stop)]),
        "norms": np.array([np.sqrt(state.rr), np.linalg.norm(b)]),
    }


def keeping(device: str, dtype: str) -> dict[str, np.ndarray]:
    """An iteration called eagerly must leave its inputs alone: the caller still holds them."""
    lib = oplib.load()
    with tf.device(device):
        b = lib.ncg_pack(tensors=[tf.constant(t) for t in tensors_of([(33,)], dtype, 1)])
        x, r, p, state = lib.ncg_cg_begin(b, tau=TAU, cg_tol=0.0, max_iter=3)
        before = [t.numpy() for t in (b, x, r, p, state)]
        after = lib.ncg_cg_iterate(hp=[2.0 * p[:33]], x=x, r=r, p=p, state=state)
        between = [t.numpy() for t in after]
        solution, _ = lib.ncg_cg_finish(*after)
    kept = [np.array_equal(t.numpy(), old) for t, old in zip((b, x, r, p, state), before, strict=True)]
    kept += [np.array_equal(t.numpy(), old) for t, old in zip(after, between, strict=True)]
    return {"kept": np.array(kept), "x": solution.numpy()}


def keeping_truth(dtype: str) -> dict[str, np.ndarray]:
    """As :func:`keeping`: all kept, and one step of steepest descent."""
    flat = Layout([(33,)]).pack([t.astype(np.float64) for t in tensors_of([(33,)], dtype, 1)])
    return {"kept": np.ones(9, bool), "x": flat / (2.0 + TAU)}


def training(device: str, dtype: str, path: str, steps: int = 3) -> dict[str, np.ndarray]:
    """The losses of a small convolutional network that Keras trains with Newton-CG, all of it on the device."""
    keras.backend.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        keras.utils.set_random_seed(3)
        rng = np.random.default_rng(3)
        images, labels = rng.standard_normal((32, 10, 10, 1)), rng.integers(0, 4, 32)
        with tf.device(device):
            layers = keras.layers
            model = keras.Sequential(
                [
                    keras.Input((10, 10, 1)),
                    layers.Conv2D(6, 3, activation="tanh"),
                    layers.AveragePooling2D(2),
                    layers.Conv2D(7, 3, activation="tanh"),
                    layers.Flatten(),
                    layers.Dense(4),
                ]
            )
            model.compile(
                # jit_compile: with one GPU Keras would choose XLA, which has no kernel for the op
                optimizer=NewtonCG(learning_rate=0.5, tau=0.5, max_iter=5, path=path),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=False,
            )
            losses: list[float] = []

            def step() -> None:
                losses.append(float(model.train_on_batch(images.astype(dtype), labels)))

            devices = set().union(*transfers.placement(step).ops.values())
            for _ in range(steps - 1):
                step()
        wanted = tf.DeviceSpec.from_string(device).device_type
        if devices != {wanted}:  # nothing would be compared
            raise RuntimeError(f"convolutions and ncg ops ran on {sorted(devices)}, and all should be on {wanted}")
        return {"loss": np.array(losses), "products": np.array(model.optimizer.last_step.products)}
    finally:
        keras.backend.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def differences(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> list[str]:
    """What differs by more than ``tolerance`` times the largest number of the array; 0 asks for equality."""
    found = []
    for name, right in want.items():
        left = np.asarray(got[name], np.float64)
        right = np.asarray(right, np.float64)
        if left.shape != right.shape:
            found.append(f"{name} has shape {left.shape}, not {right.shape}")
            continue
        error = float(np.max(np.abs(left - right), initial=0.0))
        allowed = tolerance * float(np.max(np.abs(right), initial=0.0))
        if not error <= allowed:  # not `>`: a NaN is a difference
            found.append(f"{name} is off by {error:.2e}, allowed {allowed:.2e}")
    return found


def rounding(dtype: str) -> float:
    """How far two solves of a few iterations may differ, relative to their largest number."""
    return 500 * float(np.finfo(dtype).eps)
