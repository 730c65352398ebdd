"""Gauss-Newton and Fisher products against dense matrices: Jacobian and output Hessian by nested tapes, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import directions, flat, raw, relative_error

from ncg_cuda import StopReason
from ncg_cuda.tf import GaussNewtonOperator, NewtonCG, newton
from ncg_cuda.tf.gauss_newton import LinearizedOutputs

layers = keras.layers
BATCH, FEATURES, CLASSES = 6, 4, 3

pytestmark = pytest.mark.usefixtures("float64")


def one_hot(z: Any) -> list[Any]:
    """Every unit vector, in the shape of z."""
    size = tf.size(z).numpy()
    return [tf.constant(row.reshape(z.shape)) for row in np.eye(size)]


def jacobian(outputs: Callable[[], Any], variables: Any) -> np.ndarray:
    """D outputs / d weights, rows in the order of the flattened outputs."""
    with tf.GradientTape(persistent=True) as tape:
        z = outputs()
    zero = tf.UnconnectedGradients.ZERO
    return np.array([flat(map(tf.convert_to_tensor, tape.gradient(z, raw(variables), u, zero))) for u in one_hot(z)])


def output_hessian(loss_of: Callable[[Any], Any], z: Any) -> np.ndarray:
    z = tf.constant(z)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            loss = loss_of(z)
        slope = inner.gradient(loss, z)
    return np.array([flat([outer.gradient(slope, z, u)]) for u in one_hot(z)])


def empirical(loss_of: Callable[[Any], Any], z: Any) -> np.ndarray:
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = loss_of(z)
    slope = tape.gradient(loss, z).numpy().reshape(len(z), -1)
    rows = np.zeros((len(slope), slope.size))
    for i, row in enumerate(slope):
        rows[i, i * row.size : (i + 1) * row.size] = row
    return len(slope) * rows.T @ rows


def network(last: str | None = None, **options: Any) -> tuple[keras.Model, Callable[[Any], Any]]:
    """A small model, and its outputs before the last activation."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((FEATURES,))
    hidden = layers.BatchNormalization()(layers.Dense(5, "tanh", **options)(inputs))
    z = layers.Dense(CLASSES)(hidden)
    model = keras.Model(inputs, z if last is None else layers.Activation(last)(z))
    body = keras.Model(inputs, z)
    return model, lambda x: body(x, training=True)


RNG = np.random.default_rng(3)
X = RNG.normal(size=(BATCH, FEATURES))
CLASS = RNG.integers(0, CLASSES, BATCH)
HOT = np.eye(CLASSES)[CLASS]
REAL = RNG.normal(size=(BATCH, CLASSES))
COUNT = RNG.integers(0, 5, (BATCH, CLASSES)).astype(float)
BITS = RNG.integers(0, 2, (BATCH, CLASSES)).astype(float)
WEIGHTS = RNG.uniform(0.2, 2, BATCH)


def mean_of(per_example: Any) -> Any:
    return tf.reduce_mean(per_example)


def cross_entropy(labels: Any) -> Callable[[Any], Any]:
    return lambda z: mean_of(tf.nn.softmax_cross_entropy_with_logits(labels, z))


def log_loss(labels: Any) -> Callable[[Any], Any]:
    return lambda z: mean_of(tf.nn.sigmoid_cross_entropy_with_logits(labels, z))


K = keras.losses
# name: (last activation, Keras's loss or what makes it (objects keep the float type of their making), labels,
# the loss as a function of z, where z is: before or after the activation)
LOSSES: dict[str, tuple[str | None, Any, Any, Callable[[Any], Any], str]] = {
    "squared error": (None, "mse", REAL, lambda z: mean_of((z - REAL) ** 2), "before"),
    "squared error of a softmax": ("softmax", "mse", HOT, lambda z: mean_of((z - HOT) ** 2), "after"),
    "cross-entropy from logits": (
        None,
        lambda: K.CategoricalCrossentropy(from_logits=True),
        HOT,
        cross_entropy(HOT),
        "before",
    ),
    "cross-entropy from probabilities": ("softmax", "categorical_crossentropy", HOT, cross_entropy(HOT), "before"),
    "sparse labels": (
        None,
        lambda: K.SparseCategoricalCrossentropy(from_logits=True),
        CLASS,
        cross_entropy(HOT),
        "before",
    ),
    "sparse labels, probabilities": ("softmax", "sparse_categorical_crossentropy", CLASS, cross_entropy(HOT), "before"),
    "sigmoid": ("sigmoid", "binary_crossentropy", BITS, log_loss(BITS), "before"),
    "sigmoid from logits": (None, lambda: K.BinaryCrossentropy(from_logits=True), BITS, log_loss(BITS), "before"),
    "Poisson": ("exponential", "poisson", COUNT, lambda z: mean_of(z - COUNT * tf.math.log(z + 1e-7)), "after"),
    "Huber": (None, lambda: K.Huber(0.5), REAL, lambda z: mean_of(K.huber(REAL, z, 0.5)), "before"),
    "log cosh": (None, "log_cosh", REAL, lambda z: mean_of(K.log_cosh(REAL, z)), "before"),
}


def product_inside_fit(model: Any, x: Any, y: Any, s: Any, monkeypatch: Any, curvature: str, **options: Any) -> Any:
    """One step of a real fit, recording the product as the solver's own loop computes it."""
    kept = [tf.Variable(tf.zeros_like(t)) for t in s]
    original = newton.solver.checked

    def recording(product: Any, b: Any) -> Any:
        found = tf.while_loop(lambda i, p: i < 1, lambda i, p: (i + 1, product(p)), (0, [tf.constant(t) for t in s]))[1]
        for variable, value in zip(kept, found, strict=True):
            variable.assign(value)
        return original(product, b)

    monkeypatch.setattr(newton.solver, "checked", recording)
    compiling = {k: options.pop(k) for k in list(options) if k in ("loss", "loss_weights")}
    model.compile(optimizer=NewtonCG(max_iter=2, curvature=curvature), **compiling)
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, **options)
    return [v.numpy() for v in kept]


@pytest.mark.parametrize("kind", ["gauss-newton", "empirical-fisher"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_inside_fit(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    last, loss, y, loss_of, where = LOSSES[name]
    loss = loss() if callable(loss) else loss
    model, body = network(last)
    s = directions(model.trainable_variables)
    outputs = (lambda: body(X)) if where == "before" else (lambda: model(X, training=True))
    j, z = jacobian(outputs, model.trainable_variables), outputs().numpy()
    c = output_hessian(loss_of, z) if kind == "gauss-newton" else empirical(loss_of, z)
    assert np.linalg.eigvalsh(c).min() > -1e-14
    got = product_inside_fit(model, X, y, s, monkeypatch, kind, loss=loss)
    assert relative_error([flat(got)], [j.T @ (c @ (j @ flat(s)))]) < 1e-11


# The Fisher matrix at the outputs, by its definition: the expectation of the outer products of the scores.
def fisher_of_a_softmax(z: np.ndarray) -> np.ndarray:
    p = tf.nn.softmax(z).numpy()
    c = np.zeros((z.size, z.size))
    for i, row in enumerate(p):
        at = slice(i * CLASSES, (i + 1) * CLASSES)
        for k, probability in enumerate(row):
            score = row - np.eye(CLASSES)[k]
            c[at, at] += probability * np.outer(score, score)
    return c / len(z)


def fisher_of_poisson(mean: np.ndarray) -> np.ndarray:
    """Per output count, in terms of the mean: 1 / mean."""
    return np.diag(1.0 / mean.ravel()) / mean.size


def fisher_of_bits(z: np.ndarray) -> np.ndarray:
    p = tf.sigmoid(z).numpy().ravel()
    return np.diag(p * (1 - p)) / z.size


@pytest.mark.parametrize(
    ("name", "truth", "tolerance"),
    [
        ("cross-entropy from logits", fisher_of_a_softmax, 1e-11),
        ("cross-entropy from probabilities", fisher_of_a_softmax, 1e-11),
        ("sparse labels", fisher_of_a_softmax, 1e-11),
        ("sparse labels, probabilities", fisher_of_a_softmax, 1e-11),
        ("sigmoid", fisher_of_bits, 1e-11),
        ("Poisson", fisher_of_poisson, 1e-5),  # Keras adds 1e-7 to the mean
    ],
)
def test_fisher_inside_fit(
    name: str, truth: Callable[[np.ndarray], np.ndarray], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, loss, y, _, where = LOSSES[name]
    loss = loss() if callable(loss) else loss
    model, body = network(last)
    s = directions(model.trainable_variables)
    outputs = (lambda: body(X)) if where == "before" else (lambda: model(X, training=True))
    j, c = jacobian(outputs, model.trainable_variables), truth(outputs().numpy())
    got = product_inside_fit(model, X, y, s, monkeypatch, "fisher", loss=loss)
    assert relative_error([flat(got)], [j.T @ (c @ (j @ flat(s)))]) < tolerance


def test_weights_of_samples_and_regularization(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not pass through the outputs comes with its exact Hessian."""
    model, body = network(kernel_regularizer=keras.regularizers.L2(1 / 64))
    s = directions(model.trainable_variables)
    j, z = jacobian(lambda: body(X), model.trainable_variables), body(X).numpy()
    c = output_hessian(lambda z: tf.reduce_mean(WEIGHTS * tf.reduce_mean((z - REAL) ** 2, 1)), z)
    want = j.T @ (c @ (j @ flat(s)))
    want[: s[0].size] += 2 / 64 * s[0].ravel()
    got = product_inside_fit(model, X, REAL, s, monkeypatch, "gauss-newton", loss="mse", sample_weight=WEIGHTS)
    assert relative_error([flat(got)], [want]) < 1e-11


def test_several_outputs_of_which_one_follows_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,))
    first = layers.Dense(2, name="first")(layers.Dense(4, "tanh")(inputs))
    second = layers.Dense(3, "softmax", name="second")(first)
    unused = layers.Dense(1, name="unused")(inputs)
    model = keras.Model(inputs, {"first": first, "second": second, "unused": unused})
    logits = keras.Model(inputs, second)
    target = RNG.normal(size=(BATCH, 2))

    def before_softmax() -> Any:
        layer = model.get_layer("second")
        return model(X)["first"] @ layer.kernel + layer.bias

    idle = {id(v) for v in model.get_layer("unused").trainable_variables}  # Keras gives the optimizer no others
    used = [v for v in model.trainable_variables if id(v) not in idle]
    ja = jacobian(lambda: model(X)["first"], used[:4])
    jb = jacobian(before_softmax, used[:4] + logits.layers[-1].trainable_variables)
    s = directions(used)
    columns = {id(v): t for v, t in zip(used, s, strict=True)}
    sa, sb = flat(s[:4]), flat([*s[:4], *(columns[id(v)] for v in logits.layers[-1].trainable_variables)])
    za, zb = model(X)["first"].numpy(), before_softmax().numpy()
    ca = output_hessian(lambda z: 0.5 * tf.reduce_mean((z - target) ** 2), za)
    cb = output_hessian(cross_entropy(HOT), zb)
    shared, last = ja.T @ (ca @ (ja @ sa)), jb.T @ (cb @ (jb @ sb))
    got = product_inside_fit(
        model,
        X,
        {"first": target, "second": HOT},
        s,
        monkeypatch,
        "gauss-newton",
        loss={"first": "mse", "second": "categorical_crossentropy"},
        loss_weights={"first": 0.5, "second": 1.0},
    )
    found = {id(v): t for v, t in zip(used, got, strict=True)}
    assert relative_error(flat(got[:4]), shared + last[: len(shared)]) < 1e-11
    tail = flat([found[id(v)] for v in logits.layers[-1].trainable_variables])
    assert relative_error(tail, last[len(shared) :]) < 1e-11


def test_masked_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(2)
    x = RNG.integers(1, 7, (BATCH, 5))
    x[:, 3:] = 0
    x[0, 2] = 0
    inputs = keras.Input((5,), dtype="int32")
    hidden = layers.SimpleRNN(4, return_sequences=True)(layers.Embedding(7, 3, mask_zero=True)(inputs))
    model = keras.Model(inputs, layers.Dense(CLASSES)(hidden))
    labels = RNG.integers(0, CLASSES, (BATCH, 5))
    s = directions(model.trainable_variables)
    mask = (x != 0).astype(float)

    def loss_of(z: Any) -> Any:
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=z)
        return tf.reduce_sum(mask * each) / mask.sum()

    j, z = jacobian(lambda: model(x), model.trainable_variables), model(x).numpy()
    got = product_inside_fit(
        model, x, labels, s, monkeypatch, "gauss-newton", loss=K.SparseCategoricalCrossentropy(from_logits=True)
    )
    assert relative_error([flat(got)], [j.T @ (output_hessian(loss_of, z) @ (j @ flat(s)))]) < 1e-10


def test_minimize_reaches_the_optimum_of_logistic_regression_in_a_few_steps() -> None:
    rng = np.random.default_rng(0)
    x, w = tf.constant(rng.normal(size=(50, 4))), tf.Variable(np.zeros((4, 1)))
    y = tf.constant((rng.uniform(size=(50, 1)) < 0.6).astype(float))

    def loss_fn() -> tuple[Any, Any]:
        z = x @ w
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, z)), z

    for curvature in ("gauss-newton", "fisher", "hessian"):  # all the same matrix here
        w.assign(np.zeros((4, 1)))
        optimizer = NewtonCG(1.0, tau=0.0, cg_tol=1e-10, max_iter=20, max_step=None, curvature=curvature)
        for _ in range(6):
            optimizer.minimize(loss_fn, [w])
        assert optimizer.last_step.stop_reason is StopReason.CONVERGED
        residual = tf.transpose(x) @ (tf.sigmoid(x @ w) - y)
        assert np.abs(residual).max() < 1e-8


def test_fisher_loss_of_ones_own() -> None:
    """A Poisson regression in terms of the mean: the Hessian at the outputs depends on the labels."""
    rng = np.random.default_rng(1)
    x, w = tf.constant(rng.normal(size=(20, 3))), tf.Variable(rng.normal(size=(3, 1)))
    y = tf.constant(rng.integers(0, 4, (20, 1)).astype(float))
    s = rng.normal(size=(3, 1))

    def product(kind: str) -> np.ndarray:
        @tf.function(autograph=False)
        def run() -> Any:
            mean = tf.exp(x @ w)
            loss = tf.reduce_mean(mean - y * tf.math.log(mean))
            expected = tf.stop_gradient(mean)
            fisher = tf.reduce_mean(mean - expected * tf.math.log(mean))
            return LinearizedOutputs(loss, [mean], [w], kind=kind, fisher_loss=fisher).product([tf.constant(s)])

        return flat(run())

    mean, a = np.exp(x.numpy() @ w.numpy()), x.numpy()
    np.testing.assert_allclose(product("fisher"), (a.T @ (mean * (a @ s)) / 20).ravel(), rtol=1e-12)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: NewtonCG(curvature="gauss"), ValueError, "curvature='gauss' is not known; allowed: 'hessian'"),
        (
            lambda: NewtonCG(curvature="gauss-newton").minimize(lambda: tf.reduce_sum(W**2), [W]),
            RuntimeError,
            r"taken at the model's outputs, which are not known here.*return \(loss, outputs\)",
        ),
        (
            lambda: NewtonCG(curvature="gauss-newton").minimize(lambda: (tf.reduce_sum(W**2), tf.constant([1.0])), [W]),
            ValueError,
            "the loss depends on none of the outputs",
        ),
        (
            lambda: NewtonCG().minimize(lambda: (tf.reduce_sum(W**2), W, W, W), [W]),
            ValueError,
            "loss_fn returned a tuple of 4",
        ),
        (
            lambda: NewtonCG(curvature="gauss-newton").minimize(lambda: linear(W), [W]),
            ValueError,
            "linear in the model's outputs",
        ),
    ],
)
def test_mistakes(run: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


W = tf.Variable([1.0, 2.0], dtype=tf.float64)


@pytest.mark.parametrize("loss", ["mae", "mean_absolute_percentage_error", "hinge", "categorical_hinge"])
@pytest.mark.parametrize("curvature", ["gauss-newton", "fisher"])
def test_loss_linear_in_the_outputs_is_refused(loss: str, curvature: str) -> None:
    """TensorFlow's derivative of a sign is a tensor of zeros, not None: it is no curvature either."""
    model, _ = network()
    model.compile(optimizer=NewtonCG(curvature=curvature), loss=loss)
    # A loss without labels of its own to replace may be refused for fisher before.
    with pytest.raises(ValueError, match=r"mean absolute error|curvature='fisher' replaces the labels"):
        model.fit(X, HOT, verbose=0)


@pytest.mark.parametrize(("curvature", "options"), [("empirical-fisher", {}), ("gauss-newton", {"regularizer": "l2"})])
def test_absolute_error_is_allowed_where_the_matrix_is_not_zero(curvature: str, options: dict[str, str]) -> None:
    model, _ = network(**({"kernel_regularizer": "l2"} if options else {}))
    optimizer = NewtonCG(curvature=curvature)
    model.compile(optimizer=optimizer, loss="mae")
    model.fit(X, REAL, verbose=0)
    assert optimizer.last_step is not None
    assert optimizer.last_step.products > 0


def linear(w: Any) -> tuple[Any, Any]:
    z = w**2
    return tf.reduce_sum(z), z


def test_fisher_refuses_labels_that_it_cannot_replace() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    model = keras.Model(
        inputs,
        layers.Lambda(lambda z: z / keras.ops.sum(z, -1, keepdims=True))(layers.Dense(CLASSES, "softplus")(inputs)),
    )
    model.compile(optimizer=NewtonCG(curvature="fisher"), loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="curvature='fisher' replaces the labels"):
        model.fit(X, CLASS, verbose=0)


def regression() -> tuple[Any, Any, np.ndarray]:
    """Logistic regression with a penalty: the loss with its outputs, the variables, and the matrix by the textbook."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(30, 4)), (rng.uniform(size=30) < 0.5).astype(float)
    w, bias = tf.Variable(rng.normal(size=4)), tf.Variable(0.3, dtype=tf.float64)

    def loss_on(x: Any, y: Any) -> tuple[Any, Any]:
        z = tf.linalg.matvec(x, w) + bias
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, z)) + 0.05 * tf.reduce_sum(w**2), z

    p = 1 / (1 + np.exp(-(x @ w.numpy() + 0.3)))
    a = np.c_[x, np.ones(30)]
    matrix = a.T @ (a * (p * (1 - p))[:, None]) / 30 + np.diag([0.1] * 4 + [0.0])
    return (lambda: loss_on(tf.constant(x), tf.constant(y))), (w, bias, loss_on, x, y), matrix


def test_operator() -> None:
    loss_fn, (w, bias, loss_on, x, y), matrix = regression()
    operator = GaussNewtonOperator(loss_fn, [w, bias])
    np.testing.assert_allclose(operator.to_dense(progress=False), matrix, rtol=1e-12)
    v = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(operator @ v, matrix @ v, rtol=1e-12)
    found = operator.product([v[:4, 0], v[4, 0]])
    np.testing.assert_allclose(flat(found), matrix @ v[:, 0], rtol=1e-12)
    np.testing.assert_allclose(operator.trace(samples=400, progress=False).value, np.trace(matrix), rtol=0.2)
    largest = operator.spectrum(progress=False).largest()[0].value
    np.testing.assert_allclose(largest, np.linalg.eigvalsh(matrix)[-1], rtol=1e-9)
    loss, _ = loss_fn()
    assert float(operator.loss) == pytest.approx(float(loss))
    pieces = [(tf.constant(x[i : i + 7]), tf.constant(y[i : i + 7])) for i in range(0, 30, 7)]
    batched = GaussNewtonOperator.from_batches(lambda piece: loss_on(*piece), [w, bias], pieces)
    np.testing.assert_allclose(batched @ v, matrix @ v, rtol=1e-12)

    @tf.function(autograph=False)
    def inside(s: Any) -> Any:
        return GaussNewtonOperator(loss_fn, [w, bias]) @ s

    np.testing.assert_allclose(inside(tf.constant(v[:, 0])), matrix @ v[:, 0], rtol=1e-12)
    w.assign_add(np.ones(4))
    with pytest.raises(RuntimeError, match="variables changed after this operator was built"):
        operator @ v


@pytest.mark.parametrize("kind", ["fisher", "empirical-fisher"])
def test_operators_of_other_kinds(kind: str) -> None:
    loss_fn, (w, bias, _, x, y), matrix = regression()
    operator = GaussNewtonOperator(loss_fn, [w, bias], kind)
    if kind == "empirical-fisher":
        a = np.c_[x, np.ones(30)]
        scores = a * (1 / (1 + np.exp(-(x @ w.numpy() + 0.3))) - y)[:, None]
        matrix = scores.T @ scores / 30 + np.diag([0.1] * 4 + [0.0])
    np.testing.assert_allclose(operator.to_dense(progress=False), matrix, rtol=1e-11)


def test_operator_mistakes() -> None:
    w = tf.Variable([1.0])
    with pytest.raises(ValueError, match=r"loss_fn returned a loss only; let it return \(loss, outputs\)"):
        GaussNewtonOperator(lambda: tf.reduce_sum(w**2), [w])
    with pytest.raises(ValueError, match="kind='hessian' is not known; allowed: 'gauss-newton'"):
        GaussNewtonOperator(lambda: (tf.reduce_sum(w**2), w), [w], "hessian")
