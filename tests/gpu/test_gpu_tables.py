"""A product as a table of tensors on the GPU: in a launch's arguments (up to 161 tensors) and in device memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_support import DTYPES, bits, check, takes_bfloat16, tensors_at_odd_addresses
from test_ops import SHAPES

from ncg_cuda import Layout, ops
from ncg_cuda.benchmarks.sizes import resnet50_shapes
from ncg_cuda.calls import INLINE_SEGMENTS
from ncg_cuda.catalog import OPERATIONS, Operation

pytestmark = pytest.mark.gpu
TABLES = [o for o in OPERATIONS if o.takes_table]
MANY = {
    f"{count} tensors": [(int(n),) for n in np.random.default_rng(count).integers(1, 2500, count)]
    for count in (1, 161, 162, 1000)
}


def test_161_tensors_travel_in_the_arguments() -> None:
    assert INLINE_SEGMENTS == 161  # ResNet-50's


def operands(cp: Any, operation: Operation, layout: Layout, dtype: type) -> tuple[list[Any], list[np.ndarray]]:
    """The product as tensors on the GPU, and all operands flat on the host."""
    rng = np.random.default_rng([7, len(layout.shapes)])

    def numbers() -> list[np.ndarray]:
        return [rng.standard_normal(s).astype(dtype) for s in layout.shapes]

    product = numbers()
    flat = [layout.pack(product), *(layout.pack(numbers()) for _ in range(operation.vectors - 1))]
    return tensors_at_odd_addresses(cp, layout, product), flat


@pytest.mark.parametrize("operation", TABLES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [*SHAPES.values(), *MANY.values()], ids=[*SHAPES, *MANY])
def test_a_table_gives_the_bits_of_flat(
    cp: Any, operation: Operation, dtype: type, shapes: list[tuple[int, ...]]
) -> None:
    layout = Layout(shapes)
    product, flat = operands(cp, operation, layout, dtype)
    table = operation.native(product, *[cp.asarray(v) for v in flat[1:]])
    check(operation, flat, table)
    assert bits(table) == bits(operation.native(*[cp.asarray(v) for v in flat]))


@pytest.mark.parametrize("operation", TABLES, ids=str)
def test_the_tensors_of_resnet50(cp: Any, operation: Operation) -> None:
    layout = Layout(resnet50_shapes())
    whole = 2 * np.random.default_rng(2).random(layout.size, dtype=np.float32) - np.float32(1)
    whole = layout.pack(layout.views(whole))  # zero in the padding
    flat = [whole, *[cp.asarray(whole) for _ in range(operation.vectors - 1)]]
    device = cp.asarray(whole)
    table = operation.native(layout.views(device), *flat[1:])
    check(operation, [whole] * operation.vectors, table)
    again = [cp.asarray(whole) for _ in range(operation.vectors)]
    assert bits(table) == bits(operation.native(*again))


@pytest.mark.parametrize("operation", TABLES, ids=str)
@pytest.mark.parametrize("name", ["mixed", "161 tensors", "162 tensors"])
def test_a_bfloat16_product_gives_the_bits_of_its_float32(cp: Any, operation: Operation, name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    if not takes_bfloat16(cp):
        pytest.skip("this CuPy has no bfloat16")
    layout = Layout({**SHAPES, **MANY}[name])
    rng = np.random.default_rng(4)
    narrow = [rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in layout.shapes]
    wide = layout.pack([t.astype(np.float32) for t in narrow])
    others = [layout.pack([rng.standard_normal(s).astype(np.float32) for s in layout.shapes])] * (operation.vectors - 1)
    want = bits(operation.native(*[cp.asarray(v) for v in [wide, *others]]))
    flat = cp.asarray(wide.astype(ml_dtypes.bfloat16))
    assert bits(operation.native(flat, *[cp.asarray(v) for v in others])) == want
    table = tensors_at_odd_addresses(cp, layout, narrow)
    assert bits(operation.native(table, *[cp.asarray(v) for v in others])) == want
    check(operation, [wide, *others], operation.native(table, *[cp.asarray(v) for v in others]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [*SHAPES.values(), *MANY.values()], ids=[*SHAPES, *MANY])
def test_pack_and_unpack(cp: Any, dtype: type, shapes: list[tuple[int, ...]]) -> None:
    layout = Layout(shapes)
    rng = np.random.default_rng(9)
    tensors = [rng.standard_normal(s).astype(dtype) for s in shapes]
    flat = cp.asarray(np.full(layout.size, np.nan, dtype))
    ops.pack(tensors_at_odd_addresses(cp, layout, tensors), flat, 0.5)
    assert np.array_equal(flat.get(), layout.pack([t * dtype(0.5) for t in tensors]))
    room = [np.full(t.size + 2, np.nan, dtype) for t in tensors]
    targets = [cp.asarray(r) for r in room]
    ops.unpack(flat, [t[1:-1].reshape(s) for t, s in zip(targets, shapes, strict=True)], 2.0)
    for target, tensor in zip(targets, tensors, strict=True):
        got = target.get()
        assert got[1:-1].tobytes() == tensor.tobytes()
        assert np.isnan(got[[0, -1]]).all()  # nothing before and behind a tensor was written


def test_a_table_may_go_as_soon_as_the_operation_is_queued(cp: Any) -> None:
    """Tables in device memory are copied from the host: what stands there afterwards must not matter."""
    layout = Layout(MANY["1000 tensors"])
    rng = np.random.default_rng(1)
    values = [[rng.standard_normal(s).astype(np.float32) for s in layout.shapes] for _ in range(4)]
    tables = [[cp.asarray(t) for t in v] for v in values]
    acc = cp.zeros(layout.size, np.float32)
    workspace = ops.Workspace(acc, segments=1000)
    for _ in range(25):
        for table in tables:
            ops.accumulate(acc, table, 0.25, layout=layout, workspace=workspace)
    want = sum(layout.pack(v).astype(np.float64) for v in values) * 25 * 0.25
    np.testing.assert_allclose(acc.get(), want, atol=1e-3)
