"""The designs that ``ncg-cuda bench step`` times: they compute what they claim to, and make the products they count."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import keras
import numpy as np
import tensorflow as tf

from ncg_cuda.benchmarks.step import designs, problems, reference_design, worker
from ncg_cuda.tf import hessian_vector_product


@pytest.fixture(scope="module")
def problem() -> problems.Problem:
    return problems.build("mlp-small", 16, 0)


@pytest.mark.parametrize(
    ("design", "curvature"),
    [("fused", "hessian"), ("plain", "hessian"), ("fused", "gauss-newton"), ("reference", "hessian")],
)
def test_a_step_makes_all_its_products_or_none(problem: problems.Problem, design: str, curvature: str) -> None:
    before = [v.numpy().copy() for v in problem.variables]
    step = designs.build(problem, design, curvature, 4)
    worker._choose_tau(step, 4)
    assert step.products() == 4
    step.set_solving(False)
    step.step()
    assert step.products() == 0
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, problem.variables, strict=True))
    step.set_solving(True)
    work = step.make_vector_work()
    assert int(work()[1]) == 4
    step.set_solving(False)
    assert int(work()[1]) == 0
    step.linearise()


def test_the_damping_is_raised_and_lowered_until_all_products_are_made() -> None:
    class Fake:
        """Negative curvature below a damping of 40, convergence above 60."""

        tau = 1.0
        steps = 0

        def set_solving(self, on: bool) -> None:
            assert on

        def set_tau(self, tau: float) -> None:
            self.tau = tau

        def step(self) -> None:
            self.steps += 1

        def products(self) -> int:
            return 20 if 40 < self.tau < 60 else 7

        def converged(self) -> bool:
            return self.tau >= 60

    fake = Fake()
    assert 40 < worker._choose_tau(fake, 20) < 60
    with pytest.raises(RuntimeError, match="no damping"):
        worker._choose_tau(fake, 21)


def test_the_reference_product_is_the_hessians(problem: problems.Problem) -> None:
    rng = np.random.default_rng(1)
    vectors = [tf.constant(rng.standard_normal(v.shape), tf.float32) for v in problem.variables]
    truth = hessian_vector_product(lambda: problem.loss_and_outputs()[0], problem.variables, vectors)
    found = tf.function(lambda: reference_design.hessian_product(problem, vectors), autograph=False)()
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(tf.reduce_max(tf.abs(b))))


def test_the_reference_solves_tensor_by_tensor() -> None:
    rng = np.random.default_rng(2)
    matrices: list[Any] = []
    for n in (3, 5):
        a = rng.standard_normal((n, n))
        matrices.append(tf.constant(a @ a.T + np.eye(n)))
    b = [tf.constant(rng.standard_normal(n)) for n in (3, 5)]

    def product(s: Any) -> Any:
        return [tf.linalg.matvec(m, v) for m, v in zip(matrices, s, strict=True)]

    x, made = reference_design.solve(product, b, tau=tf.constant(0.5, tf.float64), iterations=5)
    assert int(made) == 5
    for m, v, d in zip(matrices[1:], b[1:], x[1:], strict=True):
        np.testing.assert_allclose(d, np.linalg.solve(m + 0.5 * np.eye(5), v), rtol=1e-6)


def test_the_reference_leaves_moving_averages_to_the_first_pass() -> None:
    problem = problems.build("cnn-small", 2, 16)
    moving = [np.array(v) for v in _moving(problem)]
    vectors = [tf.ones(v.shape) for v in problem.variables]
    tf.function(lambda: reference_design.hessian_product(problem, vectors), autograph=False)()
    assert all(np.array_equal(a, np.array(b)) for a, b in zip(moving, _moving(problem), strict=True))


def _moving(problem: problems.Problem) -> list[Any]:
    cells = [cell.cell_contents for cell in problem.loss_and_outputs.__closure__ or ()]
    model = next(cell for cell in cells if isinstance(cell, keras.Model))
    assert len(model.non_trainable_variables) >= 2
    return [v.numpy() for v in model.non_trainable_variables]


def test_the_models_have_their_published_sizes() -> None:
    assert problems.build("mlp", 1, 0).weights == 1_863_690
    with pytest.raises(Exception, match="resnet50"):
        problems.parse("resnet")
