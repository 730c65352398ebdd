"""Every operation against the float64 reference, and the promises about its sums."""

from __future__ import annotations

import numpy as np
import pytest

from ncg_cuda import Layout, ops
from ncg_cuda.catalog import OPERATIONS, Operation

SIZES = [1, 15, 16, 17, 255, 256, 257, ops.CHUNK - 1, ops.CHUNK, ops.CHUNK + 1, 10 * ops.CHUNK + 33]
DTYPES = [np.float32, np.float64]


def vectors(count: int, n: int, dtype: type, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, count, n])
    return [rng.standard_normal(n).astype(dtype) for _ in range(count)]


def compare(operation: Operation, inputs: list[np.ndarray], native_first: object = None) -> None:
    """Run both and compare: vectors to a few roundings of an element, sums to a few of |a| |b|."""
    eps = np.finfo(inputs[0].dtype).eps
    written, sums = operation.exact(*[v.copy() for v in inputs])
    working = [v.copy() for v in inputs]
    if native_first is not None:
        working[0] = native_first
    got_written, got_sums = operation.native(*working)
    for got, want in zip(got_written, written, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=8 * eps * max(1.0, np.abs(want).max()))
    scale = sum(float(np.square(v.astype(np.float64)).sum()) for v in [*inputs, *written])
    for got, want in zip(got_sums, sums, strict=True):
        assert abs(got - want) <= 8 * eps * scale


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_agrees_with_reference(operation: Operation, dtype: type, n: int) -> None:
    compare(operation, vectors(operation.vectors, n, dtype))


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_reference_on_millions(operation: Operation, dtype: type) -> None:
    compare(operation, vectors(operation.vectors, 3_000_017, dtype))


def test_long_float32_sums_do_not_drift() -> None:
    """Sums of equal terms, where a naive float32 sum would be off by percents."""
    n = 20_000_003
    a = np.full(n, 0.1, np.float32)
    _, aa, _ = ops.dots(a, a)
    assert aa == pytest.approx(n * float(np.float32(0.1)) ** 2, rel=2e-6)


@pytest.fixture
def _threads() -> object:
    before = ops.get_num_threads()
    yield
    ops.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads_and_every_run(operation: Operation, dtype: type) -> None:
    inputs = vectors(operation.vectors, 40 * ops.CHUNK + 19, dtype)
    results = []
    for threads in (1, 2, 7, 2, 1):
        ops.set_num_threads(threads)
        written, sums = operation.native(*[v.copy() for v in inputs])
        results.append((tuple(w.tobytes() for w in written), sums))
    assert len(set(results)) == 1


SHAPES = {
    "one": [(5,)],
    "mixed": [(3, 5), (), (0,), (17,), (16,), (1, 1), (300,), (4096,), (7, 700), (255,), (256,), (257,)],
    "tiny": [(1,)] * 600,
    "long": [(9_000,), (3,), (8_191,), (70_001,)],
    "empty last": [(12,), (0,)],
}


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.takes_table], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_table_gives_the_bits_of_flat(operation: Operation, dtype: type, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(7)
    layout = Layout(shapes)

    def tensors() -> list[np.ndarray]:
        # views at odd addresses: a product's own pointer may not be aligned
        return [rng.standard_normal(int(np.prod(s)) + 1).astype(dtype)[1:].reshape(s) for s in shapes]

    hp = tensors()
    others = [layout.pack(tensors()) for _ in range(operation.vectors - 1)]
    flat = operation.native(layout.pack(hp), *[v.copy() for v in others])
    table = operation.native(hp, *[v.copy() for v in others])
    assert table[1] == flat[1]
    for a, b in zip(table[0], flat[0], strict=True):
        assert a.tobytes() == b.tobytes()
    compare(operation, [layout.pack(hp), *others], native_first=hp)


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.takes_table], ids=str)
@pytest.mark.parametrize("table", [False, True])
def test_bfloat16_product_gives_the_bits_of_its_float32(operation: Operation, table: bool) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layout = Layout(SHAPES["mixed"] + [(ops.CHUNK + 77,)])
    rng = np.random.default_rng(4)
    narrow = [rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in layout.shapes]
    wide = [t.astype(np.float32) for t in narrow]
    others = [layout.pack([rng.standard_normal(s).astype(np.float32) for s in layout.shapes])] * operation.vectors
    others = [v.copy() for v in others[1:]]
    first = narrow if table else layout.pack(wide).astype(ml_dtypes.bfloat16)
    got = operation.native(first, *[v.copy() for v in others])
    want = operation.native(wide if table else layout.pack(wide), *[v.copy() for v in others])
    assert got[1] == want[1]
    for a, b in zip(got[0], want[0], strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_pack_and_unpack(dtype: type, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(9)
    layout = Layout(shapes)
    tensors = [rng.standard_normal(s).astype(dtype) for s in shapes]
    flat = np.full(layout.size, np.nan, dtype)
    ops.pack(tensors, flat, 0.5)
    assert np.array_equal(flat, layout.pack([t * dtype(0.5) for t in tensors]))
    back = [np.full(int(np.prod(s)) + 1, np.nan, dtype)[1:].reshape(s) for s in shapes]  # at odd addresses
    ops.unpack(flat, back, 2.0)
    for a, b in zip(tensors, back, strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_workspace_or_a_layout_that_is_none() -> None:
    z = np.zeros(32, np.float32)
    with pytest.raises(TypeError, match=r"workspace: got int; give an ncg_cuda\.ops\.Workspace"):
        ops.magnitude(z, workspace=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"layout: got list; give an ncg_cuda\.Layout\(shapes\)"):
        ops.pack([z[:16], z[16:]], np.zeros(32, np.float32), layout=[(16,), (16,)])  # type: ignore[arg-type]


def test_unpack_mistakes() -> None:
    flat = np.zeros(32, np.float32)
    tensors = [np.zeros(16, np.float32), np.zeros((2, 8), np.float32)]
    with pytest.raises(TypeError, match="tensors: got ndarray; give a list"):
        ops.unpack(flat, flat)
    with pytest.raises(ValueError, match=r"tensors\[0\] and flat overlap"):
        ops.unpack(flat, [flat[:16], tensors[1]])
    shared = np.zeros(40, np.float32)
    with pytest.raises(ValueError, match=r"tensors\[0\] and tensors\[1\] overlap in memory, and both are written"):
        ops.unpack(flat, [shared[15:31], shared[:16]])
    assert not shared.any()
    ops.unpack(flat, [shared[16:32], shared[:16]])  # side by side
    tensors[1].flags.writeable = False
    with pytest.raises(ValueError, match=r"tensors\[1\]: read-only"):
        ops.unpack(flat, tensors)
    with pytest.raises(TypeError, match=r"flat: dtype float64|tensors.*float64"):
        ops.unpack(flat.astype(float), [np.zeros(16, np.float32), np.zeros((2, 8), np.float32)])


def test_unaligned_operands() -> None:
    """The CPU engine takes any address that suits the type."""
    base = np.random.default_rng(3).standard_normal(10_001).astype(np.float32)
    a, b = base[1:5001], base[5001:10001]
    compare(OPERATIONS[0], [a, b])


def test_any_shape_is_flat() -> None:
    a, b = (v.reshape(10, 50) for v in vectors(2, 500, np.float64))
    assert ops.dots(a, b) == ops.dots(a.ravel(), b.ravel())


def test_workspace_is_reused() -> None:
    hp, p = vectors(2, 5000, np.float32)
    workspace = ops.Workspace(p)
    first = ops.damped_curvature(hp, p, 0.1, workspace=workspace)
    assert ops.damped_curvature(hp, p, 0.1, workspace=workspace) == first == ops.damped_curvature(hp, p, 0.1)
    with pytest.raises(ValueError, match="workspace: made for 5000 elements"):
        ops.damped_curvature(hp[:7], p[:7], workspace=workspace)


def test_an_iteration_moves_nine_vectors() -> None:
    assert ops.VECTORS_MOVED["damped_curvature"] == 2  # reads hp, p
    assert ops.VECTORS_MOVED["cg_update"] == 7  # reads hp, x, r, p; writes x, r, p


def test_weighted_step_with_zero_rate_keeps_the_weights() -> None:
    w, d, g = vectors(3, 1000, np.float32)
    before = w.copy()
    ops.weighted_step(w, d, g, 0.0)
    assert np.array_equal(w, before)


class TestBadInput:
    """Every mistake is a clear exception that names the argument, and changes nothing."""

    def setup_method(self) -> None:
        self.hp, self.x, self.r, self.p = vectors(4, 100, np.float32)

    def update(self, **changed: object) -> None:
        given = {"x": self.x, "r": self.r, "p": self.p, "hp": self.hp, **changed}
        before = {k: np.array(v, copy=True) for k, v in given.items() if isinstance(v, np.ndarray)}
        try:
            ops.cg_update(alpha=0.5, beta=0.5, **given)
        finally:
            assert all(np.array_equal(given[k], v, equal_nan=True) for k, v in before.items())

    @pytest.mark.parametrize(
        ("changed", "error", "match"),
        [
            ({"r": np.zeros(100, np.float64)}, TypeError, r"r: dtype float64, but hp has float32|r: dtype float64"),
            ({"x": np.zeros(100, np.int32)}, TypeError, "x: dtype int32; allowed are float32 and float64"),
            ({"x": np.zeros(100, np.float16)}, TypeError, "x: dtype float16"),
            ({"p": np.zeros(99, np.float32)}, ValueError, "p: 99 elements, but hp has 100"),
            ({"hp": np.zeros(200, np.float32)[::2]}, ValueError, "hp: not contiguous"),
            ({"hp": [0.0] * 100}, TypeError, r"hp\[0\]|hp: "),
            ({"hp": None}, TypeError, "hp: got NoneType"),
            ({"hp": np.zeros(0, np.float32)}, ValueError, "hp: an empty vector"),
            ({"hp": []}, ValueError, "hp: an empty sequence"),
            ({"tau": -1.0}, ValueError, "tau: -1.0"),
            ({"tau": float("nan")}, ValueError, "tau: nan"),
        ],
    )
    def test_wrong_arguments(self, changed: dict[str, object], error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            self.update(**changed)

    def test_read_only_output(self) -> None:
        self.x.flags.writeable = False
        with pytest.raises(ValueError, match="x: read-only, but the operation writes it"):
            self.update()

    def test_overlapping_buffers(self) -> None:
        with pytest.raises(ValueError, match="x and hp overlap"):
            self.update(hp=self.x)
        base = np.zeros(150, np.float32)
        with pytest.raises(ValueError, match="r and x overlap"):
            self.update(x=base[:100], r=base[50:])

    def test_table_mistakes(self) -> None:
        with pytest.raises(ValueError, match=r"hp: its layout needs flat vectors of 112 elements .* has 100"):
            self.update(hp=[np.zeros(100, np.float32)])
        p = np.zeros(112, np.float32)
        for parts, error, match in [
            ([np.zeros(100)], TypeError, r"hp\[0\]: dtype float64"),
            ([np.zeros(200, np.float32)[::2]], ValueError, r"hp\[0\]: not contiguous"),
        ]:
            with pytest.raises(error, match=match):
                ops.damped_curvature(parts, p)
        with pytest.raises(ValueError, match="2 arrays, but the layout has 1"):
            ops.damped_curvature([p, p], p, layout=Layout([(112,)]))
        with pytest.raises(ValueError, match=r"hp\[0\]: 112 elements, but the layout has 100"):
            ops.damped_curvature([p], p, layout=Layout([(100,)]))
        with pytest.raises(ValueError, match=r"p and hp\[0\] overlap"):
            ops.cg_update(np.zeros_like(p), np.zeros_like(p), p, [p[:100]], alpha=1.0, beta=0.0)

    def test_threads(self) -> None:
        for bad in (0, 2.5, 1 << 40):
            with pytest.raises(ValueError, match="at least 1"):
                ops.set_num_threads(bad)

    def test_scalars(self) -> None:
        with pytest.raises(TypeError, match="alpha: got 'a'; give a number"):
            ops.cg_update(self.x, self.r, self.p, self.hp, alpha="a", beta=0.0)
        with pytest.raises(TypeError, match="lr: got None"):
            ops.weighted_step(self.x, self.r, self.p, None)
