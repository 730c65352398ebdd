"""Every operation on arrays of an emulated GPU: results, launches, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ncg_cuda import Layout, ops
from ncg_cuda.catalog import OPERATIONS, Operation

DTYPES = ["float32", "float64"]
TABLES = [o for o in OPERATIONS if o.takes_table]
COUNTS = [1, 161, 162, 400]  # 161 tensors fit in a launch's arguments


def vectors(count: int, n: int, dtype: str, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, count, n])
    return [rng.standard_normal(n).astype(dtype) for _ in range(count)]


def on_gpu(gpu: Any, operation: Operation, inputs: list[Any], **options: Any) -> tuple[list[np.ndarray], list[float]]:
    """Run it; every input is a NumPy array, copied to the GPU, or what is there already."""
    inputs = [gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for v in inputs]
    before = len(gpu.syncs)
    written, sums = operation.native(*inputs, **options)
    assert len(gpu.syncs) == before  # queued, and no more
    return [v.get() for v in written], [float(s) for s in sums]


def check(operation: Operation, inputs: list[np.ndarray], got: tuple[list[np.ndarray], list[float]]) -> None:
    """Against the float64 reference: vectors to a few roundings of an element, sums to a few of |a| |b|."""
    eps = float(np.finfo(inputs[-1].dtype).eps)
    written, sums = operation.exact(*inputs)
    assert len(got[1]) == len(sums)
    for a, b in zip(got[0], written, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=8 * eps * max(1.0, np.abs(b).max()))
    scale = sum(float(np.square(v.astype(np.float64)).sum()) for v in [*inputs, *written])
    for a, b in zip(got[1], sums, strict=True):
        assert abs(a - b) <= 8 * eps * scale


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_reference(gpu: Any, operation: Operation, dtype: str) -> None:
    for n in (1, 17, 2 * ops.CHUNK + 4099):
        inputs = vectors(operation.vectors, n, dtype)
        check(operation, inputs, on_gpu(gpu, operation, inputs))


def tensors_at_odd_places(gpu: Any, layout: Layout, dtype: Any, seed: int) -> tuple[list[Any], np.ndarray]:
    """GPU arrays that start 0 to 3 elements beyond aligned memory, and the same in one NumPy vector."""
    rng = np.random.default_rng(seed)
    host = [rng.standard_normal(shape).astype(dtype) for shape in layout.shapes]
    there = []
    for i, tensor in enumerate(host):
        skip = i % 4
        room = gpu.cupy.asarray(np.concatenate([np.zeros(skip, dtype), tensor.ravel()]))
        there.append(room[skip:].reshape(tensor.shape))
    return there, layout.pack([t.astype(np.float32) if dtype != "float64" else t for t in host])


def many(count: int) -> Layout:
    if count == 1:
        return Layout([(3, 1501)])
    return Layout([(i % 37 + 1,) if i % 9 else (0,) if i % 2 else (i % 5 + 1, 7) for i in range(count)])


@pytest.mark.parametrize("operation", TABLES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
@pytest.mark.parametrize("count", COUNTS)
def test_a_table_of_tensors(gpu: Any, operation: Operation, dtype: str, count: int) -> None:
    """The bits of one flat vector, and the reference's numbers."""
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    layout = many(count)
    wide = "float64" if dtype == "float64" else "float32"
    tensors, flat = tensors_at_odd_places(gpu, layout, kind, count)
    mask = layout.pack([np.ones(shape, wide) for shape in layout.shapes])  # padding is zero
    others = [v * mask for v in vectors(operation.vectors - 1, layout.size, wide)]
    got = on_gpu(gpu, operation, [tensors, *others], layout=layout)
    copied = [entry for entry in gpu.log if entry[0] == "copy"]
    assert len(copied) == (count > ops._core.INLINE_SEGMENTS)
    check(operation, [flat, *others], got)
    first = flat.astype(kind) if dtype == "bfloat16" else flat
    again = on_gpu(gpu, operation, [first, *others])
    assert again[1] == got[1]
    assert [v.tobytes() for v in again[0]] == [v.tobytes() for v in got[0]]
    dtypes = [call.dtype for call in gpu.calls if call.name == operation.name]
    assert dtypes == [{"float32": 0, "float64": 1, "bfloat16": 2}[dtype]] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_pack_and_unpack(gpu: Any, dtype: str, count: int) -> None:
    layout = many(count)
    tensors, want = tensors_at_odd_places(gpu, layout, dtype, count)
    flat = gpu.cupy.full(layout.size, np.nan, dtype)
    ops.pack(tensors, flat, 0.5, layout=layout)
    back, _ = tensors_at_odd_places(gpu, layout, dtype, 99)
    ops.unpack(flat, back, 2.0, layout=layout)
    assert gpu.syncs == []
    assert flat.get().tobytes() == (want * want.dtype.type(0.5)).tobytes()
    for a, b in zip(back, tensors, strict=True):
        assert a.get().tobytes() == b.get().tobytes()


def test_a_long_table_may_go_as_soon_as_the_call_returns(gpu: Any) -> None:
    """It is copied before it is needed, and the operation runs much later."""
    layout = many(400)
    tensors, flat = tensors_at_odd_places(gpu, layout, "float32", 3)
    p = gpu.cupy.asarray(flat)
    *_, pp = ops.damped_curvature(tensors, p, layout=layout)
    junk = [np.full((400, 3), -1) for _ in range(50)]  # takes the table's place in the host's memory
    assert float(pp) == pytest.approx(float(flat.astype(float) @ flat), rel=1e-6)
    assert len(junk) == 50


def test_sums_stay_on_the_gpu(gpu: Any) -> None:
    a = gpu.cupy.asarray(np.full(100, 2.0))
    workspace = ops.Workspace(a)
    ab, aa, bb = ops.dots(a, a, workspace=workspace)
    assert {type(s) for s in (ab, aa, bb)} == {gpu.cupy.ndarray}
    ops.magnitude(a, workspace=workspace)
    assert (float(aa), float(ab)) == (400.0, 200.0)  # views of the workspace: the first one is the new sum
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(aa)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.ones(3) + np.asarray(a)


class TestWhere:
    """The stream and the device of a launch."""

    def test_the_current_stream(self, gpu: Any) -> None:
        cp = gpu.cupy
        a = cp.asarray(np.ones(64, np.float32))
        ops.dots(a, a)
        ready = cp.cuda.get_current_stream().record()
        stream = cp.cuda.Stream(non_blocking=True)
        with stream:
            stream.wait_event(ready)
            _, aa, _ = ops.dots(a, a)
            assert float(aa) == 64.0
        ops.dots(a, a)
        assert [launch.stream for launch in gpu.launches] == [0, stream.ptr, 0]
        assert [call.stream for call in gpu.calls] == [0, stream.ptr, 0]
        assert gpu.runs == 2  # the last one waits for somebody to ask

    def test_work_that_was_queued_before_is_seen_and_none_of_another_stream(self, gpu: Any) -> None:
        cp = gpu.cupy
        stream = cp.cuda.Stream(non_blocking=True)
        with stream:
            a = cp.asarray(np.full(64, 3.0))
            assert float(ops.dots(a, a)[1]) == 576.0
            a *= 2.0
        assert np.isnan(a.values).sum() == 0
        lost = cp.asarray(np.full(64, 1.0))  # on the default stream
        with stream:
            assert np.isnan(float(ops.dots(lost, lost)[1]))  # nobody waited for it
            assert float(ops.dots(a, a)[1]) == 4 * 576.0

    def test_the_device_of_the_arrays(self, gpu: Any) -> None:
        cp = gpu.cupy
        with cp.cuda.Device(1):
            x, r, p, hp = (cp.asarray(v) for v in vectors(4, 100, "float32"))
            stream = cp.cuda.Stream(non_blocking=True)
            stream.wait_event(cp.cuda.get_current_stream().record())
        with stream:  # current on device 1 alone
            rr = ops.cg_update(x, r, p, hp, alpha=1.0, beta=0.0)
        assert (gpu.launches[0].device, gpu.launches[0].stream) == (1, stream.ptr)
        assert gpu.device == 0
        assert rr.device.id == 1
        with cp.cuda.Device(1), stream:
            want = np.float64(r.get()) @ np.float64(r.get())
            assert float(rr) == pytest.approx(want, rel=1e-6)

    def test_mixed_devices(self, gpu: Any) -> None:
        cp = gpu.cupy
        here = cp.asarray(np.ones(64, np.float32))
        with cp.cuda.Device(1):
            there = cp.asarray(np.ones(64, np.float32))
        host = np.ones(64, np.float32)
        for hp, p, match in [
            (here, host, "p: on cpu, but hp is on cuda:0; move one of them"),
            (host, here, "p: on cuda:0, but hp is on cpu"),
            (here, there, "p: on cuda:1, but hp is on cuda:0"),
            ([there], here, r"hp\[0\]: on cuda:1, but p is on cuda:0"),
            ([host], here, r"hp\[0\]: on cpu, but p is on cuda:0"),
            ([here], host, r"hp\[0\]: on cuda:0, but p is on cpu"),
        ]:
            with pytest.raises(ValueError, match=match):
                ops.damped_curvature(hp, p)
        with pytest.raises(ValueError, match="workspace: made for 64 elements on cuda:1"):
            ops.dots(here, here, workspace=ops.Workspace(there))
        assert gpu.launches == []


def test_mistakes(gpu: Any) -> None:
    cp = gpu.cupy
    room = cp.asarray(np.ones(129, np.float32))
    a = room[:128]
    with pytest.raises(ValueError, match=r"b: its memory starts at .* not on a multiple of 16 bytes; pass a copy"):
        ops.dots(a, room[1:])
    with pytest.raises(ValueError, match="b: not contiguous"):
        ops.dots(room[:64], room[:128][::2])
    with pytest.raises(TypeError, match="b: dtype float64, but a has float32"):
        ops.dots(a, a.astype(float))
    with pytest.raises(TypeError, match="b: dtype int64; allowed are"):
        ops.dots(a, a.astype(np.int64))
    with pytest.raises(ValueError, match="w and d overlap"):
        ops.weighted_step(a, a, room[:128].copy(), 0.1)
    layout = many(400)
    tensors, flat = tensors_at_odd_places(gpu, layout, "float32", 1)
    p = cp.asarray(flat)
    with pytest.raises(ValueError, match="workspace: made for 170 tensors, but 400 are given; make it by Workspace"):
        ops.damped_curvature(tensors, p, layout=layout, workspace=ops.Workspace(p, 170))
    few = many(161)  # fits in the arguments of any launch
    tensors, flat = tensors_at_odd_places(gpu, few, "float32", 1)
    p = cp.asarray(flat)
    ops.damped_curvature(tensors, p, layout=few, workspace=ops.Workspace(p))
    assert len(gpu.launches) == 1


def test_an_error_of_the_launch_is_raised(gpu: Any) -> None:
    a = gpu.cupy.asarray(np.ones(64, np.float32))
    workspace = ops.Workspace(a)
    with gpu.cupy.cuda.Device(1):
        stream = gpu.cupy.cuda.Stream()
    gpu.current_stream[0] = stream.ptr  # a stream of another device
    with pytest.raises(RuntimeError, match="dots: invalid resource handle"):
        ops.dots(a, a, workspace=workspace)
