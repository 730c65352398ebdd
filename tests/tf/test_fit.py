"""Training with nothing but compile(optimizer=NewtonCG(...)) changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda.tf import NewtonCG, progress, solver

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6, 6, 1)).astype("float32")
Y = (X[:, :3].sum(axis=(1, 2, 3)) > 0).astype("int32")


def network(kind: str) -> keras.Model:
    keras.utils.set_random_seed(5)
    body = {
        "dense": [layers.Flatten(), layers.Dense(16, activation="relu")],
        "conv": [layers.Conv2D(4, 3, activation="relu"), layers.Flatten()],
        "conv, BN, dropout": [
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.2),
            layers.Flatten(),
        ],
    }[kind]
    return keras.Sequential([keras.Input((6, 6, 1)), *body, layers.Dense(2)])


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("kind", ["dense", "conv", "conv, BN, dropout"])
def test_fit(kind: str) -> None:
    model = network(kind)
    optimizer = NewtonCG(report_loss_after=True)
    model.compile(optimizer=optimizer, loss=LOSS, metrics=["accuracy"])
    history = model.fit(X, Y, batch_size=32, epochs=6, verbose=0, validation_data=(X, Y)).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    last = optimizer.last_step
    assert last.steps == 12
    assert last.products_total >= 12
    assert last.loss_after < last.loss


@pytest.mark.parametrize("patience", [0.0, 600.0])
def test_slow_tracing_is_said(
    patience: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", patience)
    model = network("dense")
    model.compile(optimizer=NewtonCG(), loss=LOSS)
    model.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    said = [r.getMessage() for r in caplog.records if "building the graph" in r.getMessage()]
    assert len(said) == (1 if patience == 0.0 else 0)
    assert all("for 4 weight tensors" in text for text in said)


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("path", ["op", "plain"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_last_batch_of_another_size(path: str, curvature: str, recurrent: bool) -> None:
    """The size of a batch is unknown then, and with it, for TensorFlow, shapes of gradients of a Dense on sequences."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4, 2)).astype("float32"), rng.normal(size=(20, 4, 2)).astype("float32")
    body = [layers.LSTM(3, return_sequences=True)] if recurrent else [layers.Dense(3, "tanh")]
    model = keras.Sequential([keras.Input((4, 2)), *body, layers.Dense(2)])
    model.compile(optimizer=NewtonCG(curvature=curvature, path=path, max_iter=3), loss="mse")
    losses = model.fit(x, y, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_linear_regression_in_one_step() -> None:
    x, y = X.reshape(64, 36), RNG.normal(size=(64, 1)).astype("float32")
    model = keras.Sequential([keras.Input((36,)), layers.Dense(1)])
    model.compile(optimizer=NewtonCG(1.0, tau=0.0, cg_tol=1e-6, max_iter=60, max_step=None), loss="mse")
    model.fit(x, y, batch_size=64, epochs=1, verbose=0)
    z = np.c_[x, np.ones(64)].astype(float)
    best = np.mean((z @ np.linalg.lstsq(z, y, rcond=None)[0] - y) ** 2)
    np.testing.assert_allclose(model.evaluate(x, y, batch_size=64, verbose=0), best, rtol=1e-4)


def losses(kind: str, **options: Any) -> list[float]:
    compile_options = {k: options.pop(k) for k in ("jit_compile",) if k in options}
    model = network(kind)
    model.compile(optimizer=NewtonCG(0.2, max_iter=2, **options), loss=LOSS, **compile_options)
    return model.fit(X, Y, batch_size=32, epochs=2, verbose=0, shuffle=False).history["loss"]


def test_op_and_plain_path_give_the_same_losses() -> None:
    why_not = solver._why_no_op()
    if why_not is not None:
        pytest.skip(why_not)
    np.testing.assert_allclose(losses("conv", path="op"), losses("conv", path="plain"), rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_xla(kind: str) -> None:
    """The dense network takes the loop, the convolutional one the unrolled loop."""
    np.testing.assert_allclose(losses(kind, jit_compile=True), losses(kind, path="plain"), rtol=1e-4)


def test_without_the_op_library(monkeypatch: pytest.MonkeyPatch) -> None:
    want = losses("dense", path="plain")
    monkeypatch.setattr(solver, "_why_no_op", lambda: "not built")
    np.testing.assert_allclose(losses("dense", path="auto"), want, rtol=1e-6)
    with pytest.raises(RuntimeError, match="not built"):
        losses("dense", path="op")


def test_recurrent_model_with_two_outputs() -> None:
    """An embedding (sparse gradients), a loop, two losses with weights, and sample weights."""
    inputs = keras.Input((5,), dtype="int32")
    hidden = layers.LSTM(4)(layers.Embedding(10, 4)(inputs))
    outputs = {"a": layers.Dense(1, name="a")(hidden), "b": layers.Dense(3, name="b", activation="softmax")(hidden)}
    model = keras.Model(inputs, outputs)
    optimizer = NewtonCG(report_loss_after=True)
    model.compile(
        optimizer=optimizer,
        loss={"a": "mse", "b": "sparse_categorical_crossentropy"},
        loss_weights={"a": 1.0, "b": 0.5},
    )
    x = np.random.default_rng(0).integers(0, 10, (32, 5))
    y, weights = {"a": x.mean(1, keepdims=True) / 5, "b": x[:, 0] % 3}, {"a": x[:, 1] / 5, "b": x[:, 2] / 5}
    history = model.fit(x, y, sample_weight=weights, batch_size=32, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]
    np.testing.assert_allclose(optimizer.last_step.loss, history[-1], rtol=1e-6)


def test_several_steps_per_execution() -> None:
    model = network("dense")
    optimizer = NewtonCG(0.2, max_iter=2)
    model.compile(optimizer=optimizer, loss=LOSS, steps_per_execution=2)
    got = model.fit(X, Y, batch_size=32, epochs=2, verbose=0, shuffle=False).history["loss"]
    np.testing.assert_allclose(got, losses("dense"), rtol=1e-4)
    assert optimizer.last_step.steps == 4


def test_bad_batch_is_skipped() -> None:
    x = X.copy()
    x[:32] = np.nan
    model = network("dense")
    start = model.get_weights()
    optimizer = NewtonCG()
    model.compile(optimizer=optimizer, loss=LOSS)
    model.train_on_batch(x[:32], Y[:32])
    for a, b in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model.train_on_batch(x[32:], Y[32:])
    assert (optimizer.last_step.skipped, optimizer.last_step.skipped_total) == (False, 1)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_run_eagerly_is_refused() -> None:
    model = network("dense")
    model.compile(optimizer=NewtonCG(), loss=LOSS, run_eagerly=True)
    with pytest.raises(RuntimeError, match="run_eagerly=True"):
        model.fit(X, Y, verbose=0)


def test_eager_loop_is_refused() -> None:
    w = tf.Variable([1.0])
    with pytest.raises(RuntimeError, match=r"tf\.function.*minimize"):
        NewtonCG().apply_gradients([(tf.constant([1.0]), w)])


def test_frozen_layers_stay() -> None:
    model = network("conv, BN, dropout")
    model.layers[0].trainable = False
    frozen = model.layers[0].get_weights()
    model.compile(optimizer=NewtonCG(), loss=LOSS)
    model.fit(X, Y, batch_size=32, epochs=1, verbose=0)
    for a, b in zip(frozen, model.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision_wrapper() -> None:
    """Under mixed_float16 Keras wraps the optimizer and applies it inside a branch."""
    keras.config.set_dtype_policy("mixed_float16")
    model = network("dense")
    optimizer = NewtonCG(report_loss_after=True)
    model.compile(optimizer=optimizer, loss=LOSS)
    assert model.optimizer is not optimizer
    history = model.fit(X, Y, batch_size=32, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert optimizer.last_step.steps >= 7  # a step with an overflow is left out by Keras
    assert np.isfinite(optimizer.last_step.loss_after)


def test_save_and_load(tmp_path: Path) -> None:
    model = network("dense")
    model.compile(optimizer=NewtonCG(0.2, tau=0.5, max_iter=3), loss=LOSS)
    model.fit(X, Y, batch_size=32, epochs=1, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is NewtonCG
    assert (again.optimizer.tau, again.optimizer.max_iter) == (0.5, 3)
    assert repr(again.optimizer.last_step) == repr(model.optimizer.last_step)
    for m in (model, again):
        m.fit(X, Y, batch_size=32, epochs=1, verbose=0, shuffle=False)
    assert again.optimizer.last_step.steps == 4
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
