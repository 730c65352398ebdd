"""The op library: found for the running TensorFlow, refused for another, and the solve through it."""

from __future__ import annotations

from pathlib import Path

import pytest

tf = pytest.importorskip("tensorflow")
np = pytest.importorskip("numpy")

from ncg_cuda import Layout, StopReason, reference  # noqa: E402
from ncg_cuda.tf import oplib, solver  # noqa: E402

SHAPES = [(7, 5), (13,), (), (40, 3), (0,), (3, 3, 1, 2), (4100,)]


def test_the_library_is_there() -> None:
    """Built at set-up: without it every TensorFlow test below would silently take the slow path."""
    assert oplib.load() is not None, oplib.why_not()


def test_a_library_for_another_tensorflow_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "libncg_tf-1.2.so").write_bytes(b"not a library: opening it would fail with another message")
    path, why = oplib.find(tmp_path, "2.99")
    assert path is None
    assert why == f"the op library is built for TensorFlow 1.2, but 2.99 is running; rebuild: {oplib.REBUILD}"


def test_a_missing_library_names_the_command(tmp_path: Path) -> None:
    path, why = oplib.find(tmp_path)
    assert path is None
    assert "was not built" in why
    assert "--no-build-isolation" in why


def test_a_broken_library_is_reported_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"libncg_tf-{oplib.running()}.so").write_bytes(b"garbage")
    monkeypatch.setattr(oplib, "native_directory", lambda: tmp_path)
    oplib._load.cache_clear()
    try:
        assert oplib.load() is None
        assert "does not load" in oplib.why_not()
        with pytest.raises(RuntimeError, match="rebuild"):
            solver.solve(lambda p: p, [tf.ones(3)], tau=0.0, cg_tol=1e-3, max_iter=2, path="op")
        x, _ = solver.solve(lambda p: p, [tf.ones(3)], tau=0.0, cg_tol=1e-3, max_iter=2)  # the slow path serves
        np.testing.assert_allclose(x[0].numpy(), np.ones(3), rtol=1e-6)
    finally:
        monkeypatch.undo()
        oplib._load.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pack_and_views(dtype: str) -> None:
    lib = oplib.load()
    rng = np.random.default_rng(0)
    tensors = [rng.standard_normal(s).astype(dtype) for s in SHAPES]
    layout = Layout(SHAPES)
    flat = lib.ncg_pack(tensors=[tf.constant(t) for t in tensors])
    np.testing.assert_array_equal(flat.numpy(), layout.pack(tensors))
    negated = lib.ncg_pack(tensors=[tf.constant(t) for t in tensors], negate=True)
    np.testing.assert_array_equal(negated.numpy(), -layout.pack(tensors))
    views = lib.ncg_views(flat, shapes=SHAPES, N=len(SHAPES))
    for view, tensor in zip(views, tensors, strict=True):
        np.testing.assert_array_equal(view.numpy(), tensor)
    # views of one buffer: their addresses are the layout's offsets apart
    shared = [np.asarray(memoryview(v)) for v in views if v.shape.num_elements()]
    address = [v.__array_interface__["data"][0] for v in shared]
    offsets = [o for o, n in zip(layout.offsets, layout.lengths, strict=True) if n]
    itemsize = np.dtype(dtype).itemsize
    assert [a - address[0] for a in address] == [int(o) * itemsize for o in offsets]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("path", ["op", "plain"])
def test_dots_and_scaled(dtype: str, path: str) -> None:
    """Of vectors whose squares leave the range of float32; and nothing of a vector that is not asked for."""
    run = solver.choose(path)
    rng = np.random.default_rng(2)
    a, b = ([rng.standard_normal(s).astype(dtype) for s in SHAPES] for _ in range(2))
    small, large = np.asarray(2.0**-100, dtype), np.asarray(2.0**90, dtype)
    va, vb = (
        run.vector([tf.constant(t * small) for t in a], negate=True),
        run.vector([tf.constant(t * large) for t in b]),
    )
    flat_a, flat_b = (np.concatenate([t.ravel().astype(np.float64) for t in v]) for v in (a, b))
    d = run.dots(va, vb)
    eps = float(np.finfo(dtype).eps)
    norms = np.linalg.norm(flat_a), np.linalg.norm(flat_b)
    assert float(d.aa) ** 0.5 / float(d.a_scale) == pytest.approx(norms[0] * 2.0**-100, rel=50 * eps)
    assert float(d.bb) ** 0.5 / float(d.b_scale) == pytest.approx(norms[1] * 2.0**90, rel=50 * eps)
    ab = float(d.ab) / float(d.a_scale) / float(d.b_scale)
    assert ab == pytest.approx(-(flat_a @ flat_b) * 2.0**-10, abs=50 * eps * norms[0] * norms[1] * 2.0**-10)
    nan = run.vector([tf.constant(t * np.asarray(np.nan, dtype)) for t in a])
    for first, other, scale, want in ((True, nan, 2.0**100, -flat_a), (False, vb, 2.0**-90, flat_b)):
        x, y = (va, other) if first else (nan, other)
        out = run.tensors(
            run.scaled(tf.constant(first), x, y, tf.constant(scale, tf.float64), tf.constant(0.7, tf.float64))
        )
        assert [t.shape for t in out] == [tf.TensorShape(s) for s in SHAPES]
        got = np.concatenate([t.numpy().ravel() for t in out])
        np.testing.assert_allclose(got, 0.7 * want, rtol=4 * eps)
    none = run.scaled(tf.constant(True), nan, vb, tf.constant(1.0, tf.float64), tf.constant(0.0, tf.float64))
    assert all(not t.numpy().any() for t in run.tensors(none))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shift", [0.0, -1.3, -5.0])
@pytest.mark.parametrize("path", ["op", "plain"])
def test_both_paths_agree_with_the_reference(dtype: str, shift: float, path: str) -> None:
    """Positive definite, and indefinite with the negative direction met late or at once."""
    shapes = SHAPES[:-1]
    layout = Layout(shapes)
    rng = np.random.default_rng(1)
    n = int(layout.lengths.sum())
    a = rng.standard_normal((n, n))
    a = a @ a.T / n + (1.0 + shift) * np.eye(n)
    b = rng.standard_normal(n)
    matrix = tf.constant(a, dtype)

    def split(v: object) -> list[object]:
        return [tf.reshape(t, s) for t, s in zip(tf.split(v, layout.lengths), shapes, strict=True)]

    def product(p: list[object]) -> list[object]:
        return split(tf.linalg.matvec(matrix, tf.concat([tf.reshape(t, [-1]) for t in p], 0)))

    @tf.function
    def run(right: object) -> object:
        direction, report = solver.solve(product, split(right), tau=0.1, cg_tol=1e-5, max_iter=30, path=path)
        return direction, report.iterations, report.stop_reason, report.residual_norm, report.products

    direction, iterations, stop, residual, products = run(tf.constant(b, dtype))
    x, state = reference.cg(lambda p: a @ p, b, tau=0.1, cg_tol=1e-5, max_iter=30)
    assert (int(iterations), StopReason(int(stop))) == (state.iteration, state.stop)
    late = state.stop is StopReason.NEGATIVE_CURVATURE and state.pending is not StopReason.NEGATIVE_CURVATURE
    assert int(products) == state.iteration + late
    eps = float(np.finfo(dtype).eps)
    got = np.concatenate([t.numpy().ravel() for t in direction])
    np.testing.assert_allclose(got, x, rtol=0, atol=500 * eps * np.abs(x).max())
    assert float(residual) == pytest.approx(np.sqrt(state.rr), rel=1e4 * eps)


def test_the_op_refuses_vectors_of_another_length() -> None:
    lib = oplib.load()
    x, r, p, state = lib.ncg_cg_begin(tf.ones(32), tau=0.0, cg_tol=0.0, max_iter=3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="x has 32 elements, but the products need 48"):
        lib.ncg_cg_iterate(hp=[tf.ones(33)], x=x, r=r, p=p, state=state)
    with pytest.raises(tf.errors.InvalidArgumentError, match="state block has another length"):
        lib.ncg_cg_iterate(hp=[tf.ones(32)], x=x, r=r, p=p, state=state[:5])
    with pytest.raises(tf.errors.InvalidArgumentError, match="x, r and p have different lengths"):
        lib.ncg_cg_finish(x=x, r=r[:16], p=p, state=state)
    with pytest.raises(tf.errors.InvalidArgumentError, match="NcgDots: a has 32 elements, but b has 16"):
        lib.ncg_dots(x, x[:16], 1.0, 1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="NcgScaled: a has 32 elements, but b has 16"):
        lib.ncg_scaled(x, x[:16], True, 1.0, 1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"flat has shape \[32\]; its shapes need \[48\]"):
        lib.ncg_views(x, shapes=[(33,)], N=1)
