"""TensorFlow tests: skipped where TensorFlow is missing; every test starts from the same seed and float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import keras


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    keras.utils.set_random_seed(1)
    yield
    keras.backend.clear_session(free_memory=False)
    keras.backend.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def float64() -> None:
    """Keras layers compute in float64."""
    keras.backend.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
