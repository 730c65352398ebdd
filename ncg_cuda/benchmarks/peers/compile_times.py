"""About how long contenders compile before their first solve: for forecasts, and for what a quick run leaves out."""

from __future__ import annotations

from dataclasses import dataclass

QUICK_LIMIT = 3.0
"""A quick run leaves out what compiles longer, in seconds."""


@dataclass(frozen=True)
class Compilation:
    """Seconds on an idle core of 2026, with nothing of it in a cache."""

    peer: str
    flat: float
    tensors: float
    """For ResNet-50's 161 tensors."""

    def seconds(self, tensors: int) -> float:
        """For so many tensors."""
        return self.flat if tensors == 1 else self.tensors


COMPILATIONS = {
    "ncg_cuda TensorFlow op": Compilation("ours-tf", 0.3, 0.4),
    "TensorFlow graph": Compilation("tensorflow", 0.2, 8.0),
    "TensorFlow XLA": Compilation("tensorflow", 0.7, 5.0),
    "JAX cg": Compilation("jax", 0.4, 7.0),
    "JAX jit, vdot": Compilation("jax", 0.2, 4.0),
    "JAX jit, sum": Compilation("jax", 0.2, 4.0),
    "torch.compile": Compilation("torch", 11.0, 75.0),
}
"""By contender; those that are not here do not compile."""


def compile_seconds(contender: str, tensors: int) -> float:
    """About how long a contender compiles; 0 where it does not."""
    found = COMPILATIONS.get(contender)
    return 0.0 if found is None else found.seconds(tensors)
