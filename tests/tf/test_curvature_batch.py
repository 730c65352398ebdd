"""The curvature of a part of the batch, of more data, and in pieces, against the product of the whole."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import directions, flat, relative_error

from ncg_cuda.tf import NewtonCG, hessian_vector_product, newton
from ncg_cuda.tf.curvature_batch import Evaluated, of_data
from ncg_cuda.tf.gauss_newton import LinearizedOutputs

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 4))
Y = RNG.normal(size=(23, 2))
WEIGHTS = RNG.uniform(0.5, 2, 23)
KINDS = ["hessian", "gauss-newton", "empirical-fisher"]


def network() -> keras.Model:
    keras.utils.set_random_seed(7)
    penalty = keras.regularizers.L2(1 / 64)
    return keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh", kernel_regularizer=penalty), layers.Dense(2)])


def recorded(monkeypatch: pytest.MonkeyPatch, s: Any) -> list[Any]:
    """Variables that get the product with ``s`` in the next step."""
    kept = [tf.Variable(tf.zeros_like(t)) for t in s]
    original = newton.solver.checked

    def recording(product: Any, b: Any) -> Any:
        found = tf.while_loop(lambda i, p: i < 1, lambda i, p: (i + 1, product(p)), (0, [tf.constant(t) for t in s]))[1]
        for variable, value in zip(kept, found, strict=True):
            variable.assign(value)
        return original(product, b)

    monkeypatch.setattr(newton.solver, "checked", recording)
    return kept


def inside_fit(monkeypatch: pytest.MonkeyPatch, kind: str, data: Any = None, **options: Any) -> np.ndarray:
    """The product in one step of fit on all examples at once."""
    model = network()
    s = directions(model.trainable_variables)
    kept = recorded(monkeypatch, s)
    optimizer = NewtonCG(max_iter=2, curvature=kind, **options)
    optimizer.curvature_data = data
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(X, Y, sample_weight=WEIGHTS, batch_size=23, epochs=1, verbose=0, shuffle=False)
    return flat(kept)


def of_examples(kind: str, x: Any, y: Any, w: Any) -> np.ndarray:
    """The product for these examples, in one piece."""
    model = network()
    s = directions(model.trainable_variables)

    @tf.function(autograph=False)
    def product() -> Any:
        z = model(x)
        loss = tf.reduce_mean(w * tf.reduce_mean((z - y) ** 2, 1)) + tf.add_n(model.losses)
        if kind == "hessian":
            return None
        return LinearizedOutputs(loss, [z], model.trainable_variables, kind=kind).product([tf.constant(t) for t in s])

    def loss_fn() -> Any:
        return tf.reduce_mean(w * tf.reduce_mean((model(x) - y) ** 2, 1)) + tf.add_n(model.losses)

    if kind == "hessian":
        return flat(hessian_vector_product(loss_fn, model.trainable_variables, s))
    return flat(product())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got = inside_fit(monkeypatch, kind, curvature_batch_size=9)
    assert relative_error([got], [of_examples(kind, X[:9], Y[:9], WEIGHTS[:9])]) < 1e-12
    monkeypatch.undo()
    whole = inside_fit(monkeypatch, kind, curvature_batch_size=100)
    assert relative_error([whole], [of_examples(kind, X, Y, WEIGHTS)]) < 1e-12


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("micro", [1, 5, 23, 40])
@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
def test_pieces_of_the_batch(kind: str, micro: int, monkeypatch: pytest.MonkeyPatch) -> None:
    got = inside_fit(monkeypatch, kind, micro_batch_size=micro)
    assert relative_error([got], [of_examples(kind, X, Y, WEIGHTS)]) < 1e-12


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("how", ["arrays", "dataset"])
def test_more_data_than_the_batch(kind: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = RNG.normal(size=(70, 4)), RNG.normal(size=(70, 2))
    data = (x, y) if how == "arrays" else tf.data.Dataset.from_tensor_slices((x, y)).batch(70)
    got = inside_fit(monkeypatch, kind, data, micro_batch_size=16)
    assert relative_error([got], [of_examples(kind, x, y, np.ones(70))]) < 1e-12


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("parts", [1, 3])
def test_curvature_losses_of_minimize(kind: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    s = directions(model.trainable_variables)
    kept = recorded(monkeypatch, s)

    def loss_on(x: Any, y: Any) -> Any:
        def loss_fn() -> Any:
            z = model(x)
            return tf.reduce_mean((z - y) ** 2) + tf.add_n(model.losses), z

        return loss_fn

    pieces = [loss_on(X[7 * k : 7 * k + 7], Y[7 * k : 7 * k + 7]) for k in range(parts)]
    chosen = pieces if parts > 1 else pieces[0]
    optimizer = NewtonCG(max_iter=2, curvature=kind)
    optimizer.minimize(loss_on(X[:3], Y[:3]), model.trainable_variables, chosen)
    want = of_examples(kind, X[: 7 * parts], Y[: 7 * parts], np.ones(7 * parts))
    assert relative_error([flat(kept)], [want]) < 1e-12


def tokens(loss: Any, mask: bool, activity: bool = False) -> keras.Model:
    keras.utils.set_random_seed(7)
    added = keras.regularizers.L2(0.1) if activity else None
    body = [
        layers.Embedding(9, 4, mask_zero=mask),
        layers.Dense(5, "tanh", activity_regularizer=added),
        layers.Dense(3),
    ]
    model = keras.Sequential([keras.Input((6,)), *body])
    model.compile(optimizer=NewtonCG(tau=0.1, curvature="gauss-newton", micro_batch_size=5), loss=loss)
    return model


TOKENS, CLASSES = RNG.integers(0, 9, (12, 6)), RNG.integers(0, 3, (12, 6))
SHARES = np.repeat(RNG.uniform(0.5, 2, (12, 1)), 6, axis=1)


@pytest.mark.parametrize(
    ("reduction", "mask", "weights", "mean"),
    [
        ("sum_over_batch_size", False, None, True),
        ("sum_over_batch_size", False, SHARES, True),
        ("sum_over_batch_size", True, None, False),
        ("mean_with_sample_weight", False, None, True),
        ("mean_with_sample_weight", False, SHARES, False),
        ("sum", False, None, False),
    ],
)
@pytest.mark.parametrize("batch", [12, 5, 1])
def test_pieces_of_what_is_no_mean_are_refused(
    reduction: str, mask: bool, weights: Any, mean: bool, batch: int
) -> None:
    model = tokens(keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction), mask)

    def fit() -> Any:
        return model.fit(TOKENS, CLASSES, sample_weight=weights, batch_size=batch, verbose=0, shuffle=False)

    if mean or batch == 1:  # one example is one piece
        assert np.isfinite(fit().history["loss"]).all()
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="micro_batch_size needs a loss that is a mean over"):
            fit()


def test_pieces_with_losses_of_layers_are_refused() -> None:
    model = tokens(keras.losses.SparseCategoricalCrossentropy(from_logits=True), mask=False, activity=True)
    with pytest.raises(ValueError, match=r"micro_batch_size: the layer 'dense\w*' adds a loss of its own"):
        model.fit(TOKENS, CLASSES, verbose=0)


@pytest.mark.parametrize("how", ["softmax", "logits"])
def test_pieces_of_confident_probabilities(how: str) -> None:
    """Keras takes a cross-entropy from the logits where it finds them; of parts it must find them, too."""
    keras.utils.set_random_seed(7)
    kernel = keras.initializers.RandomNormal(stddev=60.0)
    last = layers.Dense(3, "softmax" if how == "softmax" else None, kernel_initializer=kernel)
    model = keras.Sequential([keras.Input((4,)), last])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=how == "logits")
    model.compile(optimizer=NewtonCG(curvature="gauss-newton", micro_batch_size=4), loss=loss)
    assert np.isfinite(model.fit(X, RNG.integers(0, 3, 23), batch_size=23, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("micro", [5, 8])
def test_pieces_under_xla(kind: str, micro: int, caplog: pytest.LogCaptureFixture) -> None:
    def losses(jit: bool) -> list[float]:
        model = network()
        model.compile(
            optimizer=NewtonCG(0.5, tau=0.5, curvature=kind, micro_batch_size=micro), loss="mse", jit_compile=jit
        )
        return list(model.fit(X[:16], Y[:16], batch_size=16, epochs=3, verbose=0).history["loss"])

    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-3)
    assert "is left out" not in caplog.text
    model = network()
    model.compile(optimizer=NewtonCG(micro_batch_size=micro, curvature=kind), loss="mse", jit_compile=True)
    model.fit(X, Y, batch_size=16, verbose=0)  # the last batch is smaller
    assert "XLA needs pieces of one size" in caplog.text


def test_training_in_pieces_is_training_at_once() -> None:
    def losses(**options: Any) -> list[float]:
        model = network()
        model.compile(optimizer=NewtonCG(0.5, tau=0.1, curvature="gauss-newton", **options), loss="mse")
        return list(model.fit(X, Y, batch_size=8, epochs=3, verbose=0, shuffle=False).history["loss"])

    np.testing.assert_allclose(losses(micro_batch_size=3), losses(), rtol=1e-4)


def test_examples_of_fixed_number_keep_it() -> None:
    seen: list[Any] = []
    v = tf.Variable([1.0, 2.0])

    @tf.function(autograph=False)
    def product() -> Any:
        def on(data: Any) -> Evaluated:
            seen.append(data[0].shape)
            return Evaluated(tf.reduce_mean((data[0] @ v[:, None]) ** 2))

        matrix = of_data("hessian", [v], on, (tf.ones((12, 2)), None), micro=4)
        return matrix.product([tf.constant([1.0, 0.0])])

    np.testing.assert_allclose(product()[0], [2.0, 2.0], rtol=1e-6)
    assert seen == [(4, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature_batch_size": 0}, "curvature_batch_size=0 is not allowed: give a number of examples >= 1"),
        ({"micro_batch_size": 2.5}, "micro_batch_size=2.5 is not allowed"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NewtonCG(**options)


def test_more_mistakes() -> None:
    w = tf.Variable([1.0])
    with pytest.raises(RuntimeError, match="need the data of fit; for minimize, give it a curvature_loss_fn"):
        NewtonCG(micro_batch_size=3).minimize(lambda: tf.reduce_sum(w**2), [w])
    with pytest.raises(ValueError, match=r"curvature_loss_fn is \(3,\); give callables"):
        NewtonCG().minimize(lambda: tf.reduce_sum(w**2), [w], (3,))
    with pytest.raises(ValueError, match=r"curvature_data: got ndarray; give \(x, y\)"):
        NewtonCG().curvature_data = X
