"""What Keras offers around an optimizer, with NewtonCG in its place, each through fit."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda.tf import BackupAndRestore, NewtonCG

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 5)).astype("float32")
Y = np.tanh(X @ RNG.normal(size=(5, 2))).astype("float32")
FULL: dict[str, Any] = {"learning_rate": 1.0, "tau": 0.1, "max_step": None, "max_iter": 50, "cg_tol": 1e-6}


def network(last: int = 2, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(7)
    return keras.Sequential([keras.Input((5,)), layers.Dense(8, "tanh", **options), layers.Dense(last)])


def linear() -> keras.Model:
    keras.utils.set_random_seed(7)
    return keras.Sequential([keras.Input((5,)), layers.Dense(2)])


def fitted(model: keras.Model, optimizer: Any, x: Any = X, y: Any = Y, **options: Any) -> list[float]:
    compiling = {k: options.pop(k) for k in list(options) if k in ("jit_compile", "steps_per_execution", "metrics")}
    model.compile(optimizer=optimizer, loss=options.pop("loss", "mse"), **compiling)
    options = {"batch_size": 32, "epochs": 3, "verbose": 0, "shuffle": False, **options}
    return list(model.fit(x, y, **options).history["loss"])


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([w.ravel() for w in model.get_weights()])


def test_weight_decay_is_decoupled() -> None:
    """The weights shrink by learning_rate * weight_decay; the step is that of the loss without it."""
    start = weights(linear())
    plain, decaying = linear(), linear()
    fitted(plain, NewtonCG(**{**FULL, "learning_rate": 0.5}), epochs=1, batch_size=64)
    fitted(decaying, NewtonCG(**{**FULL, "learning_rate": 0.5}, weight_decay=0.2), epochs=1, batch_size=64)
    np.testing.assert_allclose(weights(decaying), weights(plain) - 0.5 * 0.2 * start, atol=1e-6)
    other = linear()
    optimizer = NewtonCG(**{**FULL, "learning_rate": 0.5}, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_names=["bias", "kernel"])
    fitted(other, optimizer, epochs=1, batch_size=64)
    np.testing.assert_allclose(weights(other), weights(plain), atol=1e-6)


@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.05}])
def test_accumulated_gradients_make_one_step(clip: dict[str, float]) -> None:
    """Of four equal batches the mean gradient and the last one's curvature are those of one batch."""
    x, y = np.tile(X[:16], (4, 1)), np.tile(Y[:16], (4, 1))
    one, four = network(), network()
    fitted(one, NewtonCG(**FULL, **clip), x[:16], y[:16], batch_size=16, epochs=1)
    start = weights(network())
    fitted(four, NewtonCG(**FULL, **clip, gradient_accumulation_steps=4), x[:48], y[:48], batch_size=16, epochs=1)
    assert (weights(four) == start).all()
    assert four.optimizer.last_step is None
    four.fit(x[:16], y[:16], batch_size=16, epochs=1, verbose=0)
    np.testing.assert_allclose(weights(four), weights(one), atol=1e-5)
    assert four.optimizer.last_step.steps == 1


def test_accumulated_gradients_of_different_batches() -> None:
    """A linear model and one input for all: the curvature is the same, the gradient is the mean over the targets."""
    one, two = linear(), linear()
    x, other = X[:32], RNG.normal(size=(32, 2)).astype("float32")
    fitted(one, NewtonCG(**FULL), x, (Y[:32] + other) / 2, epochs=1)
    both = np.r_[x, x], np.r_[Y[:32], other]
    fitted(two, NewtonCG(**FULL, gradient_accumulation_steps=2), *both, epochs=1)
    np.testing.assert_allclose(weights(two), weights(one), atol=1e-5)


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str, curvature: str) -> None:
    keras.config.set_dtype_policy(policy)
    model = network()
    optimizer = NewtonCG(0.5, tau=0.5, curvature=curvature)
    losses = fitted(model, optimizer, epochs=4)
    assert losses[-1] < 0.5 * losses[0]
    assert optimizer.last_step.fallbacks_total == 0
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def test_sample_and_class_weights() -> None:
    """Examples of weight 0 do not count; with the same batches, the same step."""
    labels = (X[:, 0] > 0).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    a, b = network(), network()
    kept = np.flatnonzero(labels == 1)
    used = np.zeros(64, "float32")
    used[kept] = 64 / len(kept)  # the mean is over all examples
    fitted(a, NewtonCG(**FULL), X, labels, loss=loss, batch_size=64, sample_weight=used, epochs=1)
    fitted(b, NewtonCG(**FULL), X[kept], labels[kept], loss=loss, batch_size=64, epochs=1)
    np.testing.assert_allclose(weights(a), weights(b), atol=2e-4)
    c, d = network(), network()
    fitted(c, NewtonCG(**FULL), X, labels, loss=loss, batch_size=64, class_weight={0: 0.5, 1: 2.0}, epochs=1)
    by_class = np.where(labels == 1, 2.0, 0.5).astype("float32")
    fitted(d, NewtonCG(**FULL), X, labels, loss=loss, batch_size=64, sample_weight=by_class, epochs=1)
    np.testing.assert_array_equal(weights(c), weights(d))


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("jit_compile", ["auto", True])
def test_jit_compile(jit_compile: Any, curvature: str) -> None:
    want = fitted(network(), NewtonCG(0.5, tau=0.5, curvature=curvature), jit_compile=False)
    got = fitted(network(), NewtonCG(0.5, tau=0.5, curvature=curvature), jit_compile=jit_compile)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_several_steps_per_execution() -> None:
    want = fitted(network(), NewtonCG(0.5), steps_per_execution=1)
    assert fitted(network(), NewtonCG(0.5), steps_per_execution=4) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
def test_training_the_last_layer_alone_is_a_convex_problem(curvature: str) -> None:
    model = network()
    model.layers[0].trainable = False
    frozen = model.layers[0].get_weights()
    fitted(model, NewtonCG(**{**FULL, "tau": 0.0}, curvature=curvature), batch_size=64, epochs=3)
    for before, after in zip(frozen, model.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    hidden = np.c_[np.tanh(X @ frozen[0] + frozen[1]), np.ones(64)]
    best = np.linalg.lstsq(hidden, Y, rcond=None)[0]
    np.testing.assert_allclose(model.predict(X, verbose=0), hidden @ best, atol=2e-3)


class Subclassed(keras.Model):
    """With a train_step of its own, two inputs and a loss by add_loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = layers.Dense(6, "tanh"), layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        a, b = inputs
        hidden = self.inner(keras.ops.concatenate([a, b], 1))
        self.add_loss(0.01 * keras.ops.mean(hidden**2))
        return self.last(hidden)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        return {"objective": loss}


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
def test_a_subclassed_model_with_two_inputs_and_its_own_train_step(curvature: str) -> None:
    keras.utils.set_random_seed(1)
    model = Subclassed()
    model.compile(optimizer=NewtonCG(0.5, tau=0.5, curvature=curvature), loss="mse")
    losses = model.fit((X[:, :2], X[:, 2:]), Y, epochs=4, verbose=0).history["objective"]
    assert losses[-1] < 0.5 * losses[0]


def sequence_model(kind: str) -> keras.Model:
    keras.utils.set_random_seed(3)
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=kind != "attention")(words)
    if kind == "attention":
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        x = layers.GlobalAveragePooling1D()(x)
    else:
        x = {"LSTM": layers.LSTM, "GRU": layers.GRU, "both ways": layers.LSTM}[kind](8, return_sequences=False)(x)
    return keras.Model(words, layers.Dense(1)(x))


WORDS = RNG.integers(0, 20, (64, 6)).astype("int32")
SUMS = (WORDS.sum(1, keepdims=True) / 60 - 1).astype("float32")


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "attention"])
def test_sequences(kind: str, curvature: str) -> None:
    model = sequence_model(kind)
    losses = fitted(model, NewtonCG(0.5, tau=0.3, curvature=curvature), WORDS, SUMS, epochs=4)
    assert losses[-1] < 0.9 * losses[0]
    assert model.optimizer.last_step.fallbacks_total == 0


def test_recurrent_layers_leave_cudnn_to_others() -> None:
    """Its fused kernel has no second derivative; another optimizer may have it back."""
    keras.utils.set_random_seed(0)
    both = layers.Bidirectional(layers.LSTM(3, return_sequences=True))
    model = keras.Sequential([keras.Input((4, 2)), both, layers.GRU(2), layers.Dense(1)])
    recurrent = [both.forward_layer, both.backward_layer, model.layers[1]]
    model.compile(optimizer=NewtonCG(), loss="mse")
    assert [layer.use_cudnn for layer in recurrent] == [False] * 3
    model.compile(optimizer="adam", loss="mse")
    assert [layer.use_cudnn for layer in recurrent] == ["auto"] * 3


def test_schedules_and_callbacks(tmp_path: Path) -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    model = network()
    fitted(model, NewtonCG(schedule), epochs=2)
    assert model.optimizer.last_step.learning_rate == pytest.approx(0.5 * 0.5 ** (3 / 2))
    model = network()
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.4 / (epoch + 1)),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.EarlyStopping("loss", patience=2),
    ]
    fitted(model, NewtonCG(), epochs=3, callbacks=callbacks)
    assert model.optimizer.last_step.learning_rate == pytest.approx(0.4 / 3)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    model = network()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=1e9)
    fitted(model, NewtonCG(0.4), epochs=3, callbacks=[plateau])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)


def dropping() -> keras.Model:
    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(8, "tanh"), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(2)]
    )


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """As if the machine went down in the middle of an epoch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


class Losses(keras.callbacks.Callback):
    """The loss of every step, to the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = self.model.optimizer.last_step
        self.seen.append(step.loss)


@pytest.mark.parametrize("interrupted_at", [5, 8, 11])
@pytest.mark.parametrize("options", [{}, {"use_ema": True}, {"curvature": "gauss-newton"}], ids=str)
def test_interrupted_and_resumed_training_has_the_same_losses(
    tmp_path: Path, options: dict[str, Any], interrupted_at: int
) -> None:
    """Keras resumes at the beginning of the epoch (of four steps) that was interrupted."""

    def train(*callbacks: Any) -> tuple[keras.Model, list[float]]:
        losses, model = Losses(), dropping()
        with contextlib.suppress(Stop):
            fitted(model, NewtonCG(0.5, **options), epochs=3, batch_size=16, callbacks=[*callbacks, losses])
        return model, losses.seen

    directory = str(tmp_path / "backup")
    whole, wanted = train()
    _, first = train(BackupAndRestore(directory), StopAt(interrupted_at))
    resumed, second = train(BackupAndRestore(directory))
    done = len(wanted) - len(second)
    assert done == (interrupted_at - 1) // 4 * 4
    assert first[:done] == wanted[:done]
    assert second == wanted[done:]
    assert (weights(resumed) == weights(whole)).all()


def test_a_backup_of_another_model(tmp_path: Path) -> None:
    backup = {"callbacks": [BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)]}
    fitted(dropping(), NewtonCG(0.5), epochs=1, **backup)
    (tmp_path / "backup" / "seeds.json").write_text("[]")
    with pytest.raises(ValueError, match="0 seed generators were saved, but the model has 1"):
        fitted(dropping(), NewtonCG(0.5), epochs=1, **backup)


def test_saved_and_loaded_in_the_middle(tmp_path: Path) -> None:
    """The file has configuration and state: training goes on as if nothing had happened."""
    optimizer = NewtonCG(0.5, tau=0.7, curvature="gauss-newton", weight_decay=0.01, use_ema=True)
    model = network()
    fitted(model, optimizer, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is NewtonCG
    assert loaded.optimizer.get_config() == optimizer.get_config()
    assert repr(loaded.optimizer.last_step) == repr(optimizer.last_step)
    want = model.fit(X, Y, batch_size=32, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert loaded.fit(X, Y, batch_size=32, epochs=2, shuffle=False, verbose=0).history["loss"] == want


MIRRORED = """
import json, sys
import numpy as np, tensorflow as tf
devices = int(sys.argv[1])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
import keras
from ncg_cuda.tf import BackupAndRestore, NewtonCG
rng = np.random.default_rng(0)
x = rng.normal(size=(64, 5)).astype("float32")
y = np.tanh(x @ rng.normal(size=(5, 2))).astype("float32")
strategy = tf.distribute.MirroredStrategy([f"/cpu:{i}" for i in range(devices)])
def fit(x, y, **options):
    keras.utils.set_random_seed(7)
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
        model.compile(optimizer=NewtonCG(0.5, tau=0.2, max_iter=5, **options), loss="mse")
    losses = model.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0).history["loss"]
    step = model.optimizer.last_step
    return [losses, [float(np.abs(w).sum()) for w in model.get_weights()], step.gradient_norm]
out = {curvature: fit(x, y, curvature=curvature) for curvature in ("hessian", "gauss-newton")}
out["pieces"] = fit(x, y, curvature="gauss-newton", micro_batch_size=8)
# each replica gets the same half of a batch, and so the same first examples
x, y = (np.concatenate([v[:16], v[:16], v[16:32], v[16:32]]) for v in (x, y))
out["part"] = fit(x, y, curvature="gauss-newton", curvature_batch_size=4 * devices)
out["refused"] = []
for options in ({"curvature_batch_size": 7}, {"gradient_accumulation_steps": 2}) if devices > 1 else ():
    try:
        fit(x, y, **options)
    except Exception as error:
        out["refused"].append(str(error))
print(json.dumps(out))
"""


def test_mirrored_strategy_equals_one_device() -> None:
    def run(devices: int) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", MIRRORED, str(devices)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    one, two = run(1), run(2)
    several, accumulated = two.pop("refused")
    assert "curvature_batch_size=7 cannot be shared equally by 2 replicas" in several
    assert "gradient_accumulation_steps=2 with 2 replicas" in accumulated
    assert one.pop("refused") == []
    for curvature, (losses, sums, norm) in one.items():
        np.testing.assert_allclose(two[curvature][0], losses, rtol=1e-5)
        np.testing.assert_allclose(two[curvature][1], sums, rtol=1e-5)
        assert two[curvature][2] == pytest.approx(norm, rel=1e-4)
