"""How exact Hessian products are through normalization layers: ours and stock TensorFlow's, against finite differences.

    python bench/exact_products.py

Float64, small convolutional networks with smooth activations (the test suite's), a random direction; the truth is a
fourth-order central difference of first gradients, which stock TensorFlow computes exactly. Prints relative errors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "tf"))

import keras
import tensorflow as tf
from problems import difference_product, directions, normalized, raw, relative_error, small_resnet, squared_error

from ncg_cuda.tf import hessian_vector_product

MODELS = {
    "BatchNormalization": lambda: normalized("batch"),
    "LayerNormalization": lambda: normalized("layer"),
    "GroupNormalization": lambda: normalized("group"),
    "small ResNet (BatchNormalization)": small_resnet,
}


def stock_product(loss_fn: Any, variables: Any, vectors: Any) -> Any:
    """H s by TensorFlow's own second backpropagation."""

    @tf.function(autograph=False)
    def product() -> Any:
        gradients = tf.gradients(loss_fn(), variables)
        return [tf.convert_to_tensor(g) for g in tf.gradients(gradients, variables, grad_ys=vectors)]

    return product()


def main() -> int:
    keras.utils.set_random_seed(0)
    keras.config.set_floatx("float64")
    print(f"relative error of H s, float64{'':14}{'ncg_cuda':>12}{'stock TensorFlow':>20}")
    for name, build in MODELS.items():
        model, x, y = build()
        loss_fn, variables = squared_error(model, x, y), raw(model.trainable_variables)
        vectors = [tf.constant(v) for v in directions(variables)]
        truth = difference_product(loss_fn, variables, vectors)
        ours = relative_error(hessian_vector_product(loss_fn, variables, vectors), truth)
        stock = relative_error(stock_product(loss_fn, variables, vectors), truth)
        print(f"{name:44}{ours:12.1e}{stock:20.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
