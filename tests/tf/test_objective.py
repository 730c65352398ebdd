"""The seam to the objective: evaluating the step's loss again, exactly and without a trace."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda.tf import NewtonCG, objective

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, size=24)


class LateDropout(layers.Layer):
    """Dropout whose seed generator is born when the layer is built: inside the traced step, where fit builds it."""

    def build(self, shape: Any) -> None:
        self.inner = layers.Dropout(0.5, seed=7)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.inner(x, training=training)


def network(build_now: bool = True) -> keras.Model:
    """Everything that makes an evaluation hard to repeat: dropout, moving statistics, regularizers."""
    keras.utils.set_random_seed(3)
    body = [
        layers.Conv2D(4, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01)),
        layers.BatchNormalization(),
        layers.SpatialDropout2D(0.3),
        layers.Flatten(),
        layers.Dense(8, activation="relu", activity_regularizer=keras.regularizers.L2(0.01)),
        layers.Dropout(0.5) if build_now else LateDropout(),
        layers.Dense(3),
    ]
    return keras.Sequential([keras.Input((6, 6, 2)), *body] if build_now else body)


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Probing(NewtonCG):
    """Evaluates its objective in several ways in every step and keeps the numbers."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        seen = objective.current(self)
        self.seen = seen
        now = [tf.convert_to_tensor(v.value) for v in seen.variables]
        moved = [t * 0.9 for t in now]
        numbers = [seen.loss, seen.loss_at(), seen.loss_at(now), seen.loss_at(moved), seen.loss_at()]
        super().apply(grads, trainable_variables)
        after = seen.loss_at()
        if not hasattr(self, "numbers"):
            with tf.init_scope():
                self.numbers = tf.Variable(tf.zeros(6))
        self.numbers.assign(tf.stack([*numbers, after]))


def state(model: keras.Model) -> list[np.ndarray]:
    """Moving statistics and seed generators."""
    return [np.asarray(v) for v in model.non_trainable_variables]


@pytest.mark.parametrize("built", [True, False], ids=["built", "built by fit"])
def test_fit(built: bool) -> None:
    model = network(built)
    optimizer = Probing(0.1, max_iter=3)
    model.compile(optimizer=optimizer, loss=LOSS)
    for _ in range(3):
        model.fit(X, Y, batch_size=len(X), verbose=0)  # builds the model inside the traced step, if it is not built
        loss, again, mapped, moved, later, after = optimizer.numbers.numpy()
        assert loss == again == mapped == later, "not equal to the last bit"
        assert moved != loss
        assert after != loss
        np.testing.assert_allclose(optimizer.last_step.loss, loss, rtol=1e-7)
    assert len(optimizer.seen.variables) == len(model.trainable_variables)
    assert optimizer.seen.x.shape == X.shape
    assert optimizer.seen.y.shape == Y.shape
    assert optimizer.seen.y_pred.shape == (24, 3)


def test_moved_loss_is_the_loss_there() -> None:
    """loss_at(values) against a model that holds these values: same batch, same dropout mask."""
    model = network()
    before = state(model)
    weights = [np.asarray(v) for v in model.trainable_variables]
    optimizer = Probing(0.0, max_iter=1)
    model.compile(optimizer=optimizer, loss=LOSS)
    model.train_on_batch(X, Y)
    for v, w in zip(model.trainable_variables, weights, strict=True):
        v.assign(w * np.float32(0.9))
    for v, s in zip(model.non_trainable_variables, before, strict=True):
        v.assign(s)
    y_pred = model(X, training=True)
    np.testing.assert_allclose(optimizer.numbers[3], LOSS(Y, y_pred) + tf.add_n(model.losses), rtol=1e-6)


def test_fit_leaves_no_trace() -> None:
    """However often the loss is evaluated, statistics and seeds move as one plain step moves them."""
    ours, plain = network(), network()
    optimizer = Probing(0.0, max_iter=2)
    ours.compile(optimizer=optimizer, loss=LOSS, metrics=["accuracy"])
    plain.compile(optimizer=keras.optimizers.SGD(0.0), loss=LOSS, metrics=["accuracy"])
    for _ in range(2):
        one, other = ours.train_on_batch(X, Y, return_dict=True), plain.train_on_batch(X, Y, return_dict=True)
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-6)
        np.testing.assert_allclose(one["accuracy"], other["accuracy"])
        for a, b in zip(state(ours), state(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
            if a.dtype == np.uint32:
                np.testing.assert_array_equal(a, b)
    for a, b in zip(ours.trainable_variables, plain.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("keras_variables", [True, False])
def test_minimize(keras_variables: bool) -> None:
    model, twin = network(), network()
    variables = model.trainable_variables if keras_variables else [v.value for v in model.trainable_variables]
    optimizer = NewtonCG(0.0, max_iter=2, report_loss_after=True)
    probe: list[Any] = []

    def loss_fn() -> Any:
        return LOSS(Y, model(X, training=True)) + tf.add_n(model.losses)

    @tf.function(autograph=False)
    def step() -> Any:
        found, gradients, commit = objective.from_loss_fn(loss_fn, variables)
        now = [tf.convert_to_tensor(v if isinstance(v, tf.Variable) else v.value) for v in variables]
        probe.append(found)
        numbers = [
            found.loss,
            found.loss_at(),
            found.loss_at(now),
            found.loss_at([t * 0.9 for t in now]),
            found.loss_at(),
        ]
        commit()
        del gradients
        return numbers

    for _ in range(2):
        loss, again, mapped, moved, later = (float(t) for t in step())
        expected = LOSS(Y, twin(X, training=True)) + tf.add_n(twin.losses)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert loss == again == mapped == later
        assert moved != loss
        for a, b in zip(state(model), state(twin), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    for a, b in zip(model.trainable_variables, twin.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)

    optimizer.minimize(loss_fn, variables)
    assert optimizer.last_step.loss == optimizer.last_step.loss_after  # a learning rate of 0


def test_loss_after_is_the_loss_of_the_moved_weights() -> None:
    w = tf.Variable([3.0, -1.0], dtype=tf.float64)
    optimizer = NewtonCG(0.5, tau=0.0, report_loss_after=True, max_step=None)
    loss = optimizer.minimize(lambda: tf.reduce_sum(w**2), [w])
    np.testing.assert_allclose(loss, 10.0)
    np.testing.assert_allclose(optimizer.last_step.loss_after, 2.5)
    np.testing.assert_allclose(w, [1.5, -0.5])


def test_loss_after_sees_constraints() -> None:
    """Keras applies constraints at the end of the step; the loss is that of the constrained weights."""
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, use_bias=False, kernel_constraint=keras.constraints.MaxNorm(0.1))]
    )
    x, y = RNG.normal(size=(8, 2)).astype("float32"), np.full((8, 1), 5.0, "float32")
    optimizer = NewtonCG(1.0, tau=0.0, report_loss_after=True)
    model.compile(optimizer=optimizer, loss="mse")
    model.train_on_batch(x, y)
    assert np.linalg.norm(model.get_weights()[0]) < 0.1001
    np.testing.assert_allclose(optimizer.last_step.loss_after, np.mean((model(x) - y) ** 2), rtol=1e-6)


def test_loop_by_hand_has_no_objective() -> None:
    w = tf.Variable([1.0, 2.0])

    def step(optimizer: NewtonCG) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w**2)
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])

    plain = NewtonCG(1.0, tau=0.0, max_step=None)
    tf.function(lambda: step(plain), autograph=False)()
    np.testing.assert_allclose(w, [0.0, 0.0], atol=1e-6)
    assert np.isnan(plain.last_step.loss)
    with pytest.raises(RuntimeError, match=r"no objective.*fit.*minimize"):
        tf.function(lambda: step(NewtonCG(report_loss_after=True)), autograph=False)()


class TwoLosses(keras.Model):
    """Its train_step makes it unclear which loss is meant, in one of two ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.dense = way, layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            if self.way == "twice":
                loss = self.compute_loss(x=x, y=y, y_pred=self(2 * x, training=True))
            elif self.way == "changed":
                loss = self.optimizer.scale_loss(2 * loss)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize(("way", "message"), [("twice", "more than once"), ("changed", "another loss")])
def test_custom_train_step_with_an_unclear_loss_is_refused(way: str, message: str) -> None:
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    model = TwoLosses(way)
    model.compile(optimizer=NewtonCG(report_loss_after=True), loss="mse")
    with pytest.raises(RuntimeError, match=message):
        model.fit(x, y, verbose=0)
    model = TwoLosses(way)
    model.compile(optimizer=NewtonCG(), loss="mse")
    model.fit(x, y, verbose=0)


class Own(keras.Model):
    """Its train_step differentiates something made of what compute_loss returns."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.dense, self.more = layers.Dense(3, "tanh"), layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.more(self.dense(x))

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = used = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            if self.way == "three times":
                used = 3.0 * loss
            elif self.way == "penalty":
                used = loss + 0.3 * tf.reduce_sum(self.dense.kernel**2)
        gradients = tape.gradient(used, self.trainable_variables)
        if self.way == "gradients":
            gradients = [3.0 * g for g in gradients]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize(
    "options", [{"curvature": "gauss-newton"}, {"micro_batch_size": 2}, {"curvature_batch_size": 2}]
)
@pytest.mark.parametrize("way", ["as it is", "three times", "penalty", "gradients"])
def test_curvature_of_another_loss_than_the_differentiated_one_is_refused(way: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)).astype("float32"), rng.normal(size=(4, 1)).astype("float32")
    model = Own(way)
    model.compile(optimizer=NewtonCG(**options), loss="mse")
    if way == "as it is":
        before = model.evaluate(x, y, verbose=0)
        model.fit(x, y, epochs=2, verbose=0)
        assert model.evaluate(x, y, verbose=0) < before
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match="train_step differentiates another one"):
        model.fit(x, y, verbose=0)
    model = Own(way)
    model.compile(optimizer=NewtonCG(), loss="mse")  # the Hessian needs the gradients alone
    model.fit(x, y, verbose=0)


@pytest.mark.parametrize("way", ["twice", "changed"])
def test_curvature_of_an_unclear_loss_is_refused(way: str) -> None:
    model = TwoLosses(way)
    model.compile(optimizer=NewtonCG(curvature="gauss-newton"), loss="mse")
    with pytest.raises(
        RuntimeError, match="curvature='gauss-newton' needs the loss that is differentiated, which is not"
    ):
        model.fit(np.ones((4, 2), "float32"), np.ones((4, 1), "float32"), verbose=0)


def test_custom_train_step() -> None:
    model = TwoLosses("once")
    optimizer = Probing(0.1)
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(np.ones((4, 2), "float32"), np.ones((4, 1), "float32"), verbose=0)
    loss, again, mapped, *_ = optimizer.numbers.numpy()
    assert loss == again == mapped


def test_random_numbers_that_cannot_be_repeated_are_refused() -> None:
    w = tf.Variable([1.0, 2.0])

    def loss_fn() -> Any:
        return tf.reduce_sum((w - tf.random.normal([2])) ** 2)

    NewtonCG().minimize(loss_fn, [w])
    with pytest.raises(RuntimeError, match=r"RandomStandardNormal.*SeedGenerator"):
        NewtonCG(report_loss_after=True).minimize(loss_fn, [w])


def test_bad_values() -> None:
    w = tf.Variable([1.0, 2.0])

    def at(values: Any) -> Any:
        return tf.function(lambda: objective.from_loss_fn(lambda: tf.reduce_sum(w**2), [w])[0].loss_at(values))()

    np.testing.assert_allclose(at([tf.constant([3.0, 4.0])]), 25.0)
    np.testing.assert_allclose(w, [1.0, 2.0])
    with pytest.raises(ValueError, match="0 values for 1 variables"):
        at([])
    with pytest.raises(ValueError, match=r"values\[0\] has shape \(3,\)"):
        at([tf.zeros(3)])
    with pytest.raises(ValueError, match="float64"):
        at([tf.zeros(2, tf.float64)])


def test_other_models_are_left_alone() -> None:
    """Compiling with another optimizer, before or after, leaves a model without our wrappers."""
    model = network()
    for optimizer, wrapped in (("adam", False), (NewtonCG(), True), ("sgd", False)):
        model.compile(optimizer=optimizer, loss=LOSS)
        assert ("train_step" in vars(model), "compute_loss" in vars(model)) == (wrapped, wrapped)
        model.train_on_batch(X, Y)
    assert np.isfinite(model.evaluate(X, Y, verbose=0))
