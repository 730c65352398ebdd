"""Symmetric linear operators on a model's weights: products, SciPy, dense matrices, diagonal, trace, spectrum.

A new kind of curvature is a subclass with one method, ``_product``; see :class:`CurvatureOperator`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from .estimates import Estimate, estimate_diagonal, estimate_trace
from .graphs import graph_chain, raw_variable
from .progress import Progress, ProgressOption
from .spectrum import Spectrum, estimate_spectrum
from .vectors import FlatVectors, check_variables, check_vectors


class CurvatureOperator(ABC):
    """A symmetric linear operator on the weights of a model, known by its products.

    A subclass calls ``super().__init__(variables)`` and implements :meth:`_product`. In eager execution that method is
    traced once, into a compiled ``tf.function``; every product afterwards is one call of it.

    Args:
        variables: ``tf.Variable`` or Keras variables, all float32 or all float64.

    Attributes:
        variables: the variables, in order.

    ``op @ v`` takes and returns a flat vector of length n, the variables' elements in order without padding, as NumPy
    array or tensor; a 2-D array or tensor (n, k) of k columns; or a list of tensors, one per variable. A NumPy array
    of any real dtype is converted to the operator's dtype, which the result has; a tensor must have that dtype.

    An operator built inside a ``tf.function`` belongs to it and gives products only (``product``, ``@`` on tensors).

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from ncg_cuda.tf import HessianOperator
        >>> w = tf.Variable([1.0, 2.0], dtype=tf.float64)
        >>> hessian = HessianOperator(lambda: tf.reduce_sum(w**3), [w])
        >>> (hessian @ np.array([1.0, 1.0])).tolist()
        [6.0, 12.0]
        >>> hessian.trace(samples=2, progress=False).value
        18.0
        >>> round(hessian.spectrum(progress=False).largest()[0].value, 9)
        12.0
    """

    __array_ufunc__ = None  # NumPy leaves array @ operator alone instead of taking the operator for a scalar

    _rows_at_once = 1
    """How many vectors a method that has many at hand gives to :meth:`_rows` in one call."""

    def __init__(self, variables: Sequence[Any]) -> None:
        self.variables = list(variables)
        check_variables(self.variables)
        self._raw = [raw_variable(v) for v in self.variables]
        self._flat = FlatVectors(self._raw)
        self._in_graph = bool(graph_chain())

    @abstractmethod
    def _product(self, vectors: list[Any]) -> list[Any]:
        """The operator times one tensor per variable, checked for shape and dtype; returns tensors of the same."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n) for n weights."""
        return (self._flat.size, self._flat.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the products: float32 or float64."""
        dtype: np.dtype[Any] = np.dtype(self._flat.dtype.as_numpy_dtype)
        return dtype

    def product(self, vectors: Sequence[Any]) -> list[Any]:
        """The operator times a vector.

        Args:
            vectors: one tensor or array per variable, of its shape and dtype.

        Returns:
            One tensor per variable, of its shape and dtype.

        Raises:
            ValueError: wrong number, shape or dtype of vectors.
            RuntimeError: the operator was built inside a ``tf.function`` and is used outside of it.
        """
        tensors = check_vectors(vectors, self._raw)
        if graph_chain():
            return self._product(tensors)
        self._need_eager("product")
        return list(self._on_tensors(tensors))

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, (list, tuple)):
            return self.product(other)
        if not tf.is_tensor(other):
            columns = self._flat.columns(other)
            return np.ascontiguousarray(self._rows(columns.T).T).reshape(np.shape(other))
        tensor = tf.convert_to_tensor(other)
        self._flat.check_tensor(tensor)
        multiply = self._multiply if graph_chain() else self._multiply_eagerly
        if tensor.shape.rank == 1:
            return multiply(tensor)
        return tf.stack([multiply(column) for column in tf.unstack(tensor, axis=1)], axis=1)

    def to_scipy(self) -> Any:
        """The operator as a ``scipy.sparse.linalg.LinearOperator`` of the same shape and dtype.

        Raises:
            ModuleNotFoundError: SciPy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_scipy() needs SciPy: pip install scipy", name="scipy") from error
        self._need_eager("to_scipy")
        return LinearOperator(
            self.shape,
            matvec=self.__matmul__,
            rmatvec=self.__matmul__,
            matmat=self.__matmul__,
            rmatmat=self.__matmul__,
            dtype=self.dtype,
        )

    def to_dense(self, limit: int = 5000, progress: ProgressOption = None) -> NDArray[Any]:
        """The whole matrix, by n products.

        Args:
            limit: the largest n that is accepted.
            progress: see :data:`~ncg_cuda.tf.progress.ProgressOption`.

        Returns:
            Shape (n, n), in the operator's dtype; not symmetrised.

        Raises:
            ValueError: n is above ``limit``.
        """
        n = self._flat.size
        if n > limit:
            raise ValueError(
                f"to_dense: {n} weights, so the matrix takes {n * n * self.dtype.itemsize / 2**30:.3g} GiB and {n} "
                f"products; the limit is {limit}. Use @, to_scipy(), diagonal() or spectrum(), or to_dense(limit={n})"
            )
        out = np.empty((n, n), self.dtype)
        with Progress("to_dense", n, progress) as bar:
            for start in range(0, n, self._rows_at_once):
                stop = min(n, start + self._rows_at_once)
                out[:, start:stop] = self._rows(np.eye(stop - start, n, start, dtype=self.dtype)).T
                bar.advance(stop - start)
        return out

    def diagonal(self, samples: int = 100, seed: int = 0, progress: ProgressOption = None) -> Estimate:
        """The diagonal, by Hutchinson's estimator: see :func:`~ncg_cuda.tf.estimates.estimate_diagonal`.

        Returns:
            An :class:`Estimate` of float64 arrays of shape (n,); :meth:`unflatten` gives them a shape.
        """
        return estimate_diagonal(
            self._samples("diagonal"), self._flat.size, samples, seed, self._rows_at_once, progress
        )

    def trace(
        self, samples: int = 100, seed: int = 0, method: str = "hutchinson", progress: ProgressOption = None
    ) -> Estimate:
        """The trace: see :func:`~ncg_cuda.tf.estimates.estimate_trace`.

        Returns:
            An :class:`Estimate` of floats.
        """
        rows = self._samples("trace")
        return estimate_trace(rows, self._flat.size, samples, seed, method, self._rows_at_once, progress)

    def spectrum(
        self,
        steps: int = 64,
        samples: int = 4,
        seed: int = 0,
        points: int = 1024,
        width: float | None = None,
        progress: ProgressOption = None,
    ) -> Spectrum:
        """The density of eigenvalues and the extreme ones: see :func:`~ncg_cuda.tf.spectrum.estimate_spectrum`."""
        epsilon = float(np.finfo(self.dtype).eps)
        rows = self._samples("spectrum")
        return estimate_spectrum(rows, self._flat.size, epsilon, steps, samples, seed, points, width, progress)

    def flatten(self, tensors: Sequence[Any]) -> NDArray[Any]:
        """One flat NumPy array, shape (n,), of one tensor or array per variable (such as gradients)."""
        return np.asarray(self._flat.join(check_vectors(tensors, self._raw)))

    def unflatten(self, flat: Any) -> list[NDArray[Any]]:
        """A flat array of shape (n,) as one array per variable, of its shape; the dtype stays."""
        flat = np.asarray(flat)
        if flat.shape != (self._flat.size,):
            raise ValueError(f"unflatten: shape {flat.shape}; ({self._flat.size},) is needed")
        parts = np.split(flat, np.cumsum(self._flat.lengths)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self._flat.shapes, strict=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._flat.size} weights in {len(self._raw)} variables, {self.dtype})"

    def _rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The products with the rows of a (k, n) array in the operator's dtype, as rows of a new one."""
        self._need_eager("this")
        out = np.empty(rows.shape, self.dtype)
        for row, result in zip(rows, out, strict=True):
            result[:] = self._on_flat(tf.convert_to_tensor(row))
        return out

    def _samples(self, what: str) -> Any:
        """:meth:`_rows` for the estimators: float64 in and out, finite."""

        def rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
            out = self._rows(vectors.astype(self.dtype, copy=False)).astype(np.float64, copy=False)
            if not np.isfinite(out).all():
                raise ArithmeticError(
                    f"{what}: a product with {self!r} is not finite. Look at the loss and its gradient at these weights"
                )
            return out

        return rows

    def _multiply(self, flat: Any) -> Any:
        return self._flat.join(self._product(self._flat.split(flat)))

    def _multiply_eagerly(self, flat: Any) -> Any:
        self._need_eager("@")
        return self._on_flat(flat)

    @cached_property
    def _on_flat(self) -> Any:
        signature = [tf.TensorSpec([self._flat.size], self._flat.dtype)]
        return tf.function(self._multiply, input_signature=signature, autograph=False)

    @cached_property
    def _on_tensors(self) -> Any:
        signature = [[tf.TensorSpec(shape, self._flat.dtype) for shape in self._flat.shapes]]
        return tf.function(self._product, input_signature=signature, autograph=False)

    def _need_eager(self, what: str) -> None:
        if self._in_graph or graph_chain():
            raise RuntimeError(
                f"{type(self).__name__}: {what} on NumPy arrays or eager tensors needs an operator that is built and "
                "used outside of any tf.function; inside, use product() or @ on the function's tensors"
            )
