"""The parts of the GPU check that need no GPU: reading a trace, seeing where ops are placed, saying there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

GPU_CHECK = Path(__file__).resolve().parents[1] / "gpu"
sys.path.insert(0, str(GPU_CHECK))
import check_tensorflow as check  # noqa: E402
import tensorflow_cases as cases  # noqa: E402
import transfers  # noqa: E402


def trace(events: list[tuple[str, int | None]], *, plane: str = "/device:GPU:0", line: str = "Stream #7") -> Any:
    """A trace of one stream: names, and the bytes of copies."""
    space = xplane_pb2.XSpace()
    shown = space.planes.add(name=plane)
    shown.stat_metadata[1].name = "memcpy_details"
    stream = shown.lines.add(name=line)
    for i, (name, size) in enumerate(events, start=1):
        shown.event_metadata[i].name = name
        event = stream.events.add(metadata_id=i)
        if size is not None:
            text = f"kind_src:device kind_dst:pinned size:{size} dest:0 async:1"
            if i % 2:  # a string is stored in place, or once for all that share it
                event.stats.add(metadata_id=1, str_value=text)
            else:
                shown.stat_metadata[100 + i].name = text
                event.stats.add(metadata_id=1, ref_value=100 + i)
    return space


def test_a_trace_is_counted() -> None:
    kernel = "void ncg::cuda::pass<ncg::CgUpdate<float>, float, float, ncg::InSolve<ncg::CgUpdate<float>>>(...)"
    mangled = "_ZN3ncg4cuda4passINS_8CgUpdateIfEEEEv"
    events = [("MemcpyD2H", 1), ("MemcpyH2D", 4096), ("MemcpyD2D", 100), ("MemcpyD2H", 8), (kernel, None)]
    traffic = transfers.read_trace(trace([*events, (mangled, None), ("void cublas_kernel<pass>()", None)]))
    assert traffic.events == 7
    assert traffic.copies == {"MemcpyD2H": 2, "MemcpyH2D": 1, "MemcpyD2D": 1}
    assert traffic.copied_bytes == {"MemcpyD2H": 9, "MemcpyH2D": 4096, "MemcpyD2D": 100}
    assert traffic.crossing_bytes() == 4105
    assert traffic.passes == 2


def test_a_trace_of_the_host_says_nothing_of_gpus() -> None:
    assert transfers.read_trace(trace([("MemcpyD2H", 1)], plane="/host:CPU")).events == 0
    assert transfers.read_trace(trace([("MemcpyD2H", 1)], line="XLA Ops")).events == 0


def test_a_copy_without_a_size_is_no_proof() -> None:
    with pytest.raises(ValueError, match="does not say how many bytes"):
        transfers.read_trace(trace([("MemcpyD2H", None)]))


def test_the_profiler_runs_and_sees_no_gpu() -> None:
    assert transfers.traced(lambda: (tf.ones(3) + 1.0).numpy()).events == 0


def test_placement_sees_ops_and_crossings() -> None:
    """In a process with two CPU devices, of which the loop's body uses both."""
    code = f"""
import sys; sys.path.insert(0, {str(GPU_CHECK)!r})
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import tensorflow_cases as cases, transfers
solve, arguments = cases.solve_function("/CPU:0", [(33,), (4,)], "float32", iterations=3)
one = transfers.placement(lambda: tf.function(solve, autograph=False)(*arguments))
assert one.ops == {{op: {{"CPU"}} for op in ("NcgPack", "NcgViews", "NcgCgBegin", "NcgCgIterate", "NcgCgFinish")}}, one
assert one.crossing_in_loops == [], one

@tf.function(autograph=False)
def crossing(x):
    def body(x):
        with tf.device("/CPU:1"):
            y = tf.matmul(x, x)
        with tf.device("/CPU:0"):
            return tf.matmul(y, y)
    return tf.while_loop(lambda x: tf.reduce_sum(x) > 1.0, body, [x], maximum_iterations=3)
two = transfers.placement(lambda: crossing(tf.ones((3, 3))))
assert any("float32" in name for name in two.crossing_in_loops), two
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_no_gpu_has_an_exit_code_and_a_message_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    assert check.main([]) == check.NO_GPU == 3
    said = capsys.readouterr().err
    assert "no GPU" in said
    assert "TENSORFLOW=tensorflow-cuda" in said


def test_differences_sees_what_differs() -> None:
    want = {"x": np.array([1.0, 2.0]), "n": np.array(3)}
    assert cases.differences({"x": np.array([1.0, 2.0 + 1e-9]), "n": np.array(3)}, want, 1e-9) == []
    assert len(cases.differences({"x": np.array([1.0, 2.1]), "n": np.array(4)}, want, 1e-9)) == 2
    assert len(cases.differences({"x": np.array([1.0, np.nan]), "n": np.array(3)}, want, 1e-9)) == 1
    assert "shape" in cases.differences({"x": np.ones(1), "n": np.array(3)}, want, 1.0)[0]


def test_training_by_op_and_plain_path_on_the_cpu() -> None:
    failures, figures = check.check_training(check.CPU)
    assert failures == []
    losses = figures["losses"]["float64, op"]
    assert losses[0] > losses[1] > losses[2]


def test_results_are_written_and_failures_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> check.Outcome:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(check, "check_ops", lambda *_, **__: ([], {"arrays_compared": 1}))
    monkeypatch.setattr(check, "check_training", lambda _: broken())
    monkeypatch.setattr(check, "check_transfers", lambda *_: ([], {}))
    monkeypatch.setattr(check, "time_solves", lambda *_: ([], {}))
    assert check.main(["--allow-cpu", "--quick", "--out", str(tmp_path)]) == 1
    (written,) = tmp_path.glob("tensorflow-*.json")
    steps = json.loads(written.read_text())["steps"]
    assert steps["training"]["failures"] == ["RuntimeError: no kernel image is available"]
    assert [step["passed"] for step in steps.values()] == [True, False, True, True]
