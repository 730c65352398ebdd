"""Proof of the TensorFlow op's GPU kernels, on a machine with a GPU and a GPU build of TensorFlow; with figures.

    make gpu-check-tf TENSORFLOW=tensorflow-cuda          # builds, then runs this
    python tests/gpu/check_tensorflow.py --allow-cpu      # the same comparisons with the CPU kernels, as a rehearsal

1. Every op against float64 NumPy and against the CPU's kernels: odd sizes, up to 200 tensors, both dtypes, every GPU.
2. Keras trains a small network on the GPU through the op: the losses are the CPU's to rounding, and the plain path's.
3. No vector crosses between host and GPU in an iteration: bytes of all copies in the profiler's trace, the launches of
   the fused passes, and the devices that TensorFlow gave to the ops.
4. Time of an iteration for the weights of ResNet-50, op against plain TensorFlow code: figures, no test.

Exit code: 0 all passed, 1 something failed, 3 TensorFlow sees no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import keras
import tensorflow as tf
import tensorflow_cases as cases
import transfers

from ncg_cuda.tf import oplib

CPU = "/CPU:0"
NO_GPU = 3
RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
Outcome = tuple[list[str], dict[str, Any]]
"""What failed, and figures."""


def check_ops(devices: list[str], large: bool) -> Outcome:
    """Step 1."""
    failures, compared = [], 0
    lists = {**cases.SHAPES, **({"millions": cases.LARGE} if large else {})}
    for device in devices:
        for dtype in cases.DTYPES:
            small = cases.rounding(dtype)

            def compare(name: str, got: Any, truth: Any, tolerance: float, where: str = f"{device} {dtype}") -> None:
                nonlocal compared
                compared += len(truth)
                failures.extend(f"{where}, {name}: {found}" for found in cases.differences(got, truth, tolerance))

            for name, shapes in lists.items():
                compare(f"pack {name}", cases.packing(device, shapes, dtype), cases.packing_truth(shapes, dtype), 0.0)
                summed = cases.summing(device, shapes, dtype)
                compare(f"sums and multiples {name}", summed, cases.summing_truth(shapes, dtype), small)
                for shift in (0.0, -5.0, -40.0):  # definite; negative curvature late, and at once
                    case = f"solve {name}, diagonal shifted by {shift:g}"
                    got = cases.solving(device, shapes, dtype, shift=shift)
                    compare(f"{case}, NumPy", got, cases.solving_truth(shapes, dtype, shift=shift), small)
                    if device != CPU:
                        compare(f"{case}, CPU", got, cases.solving(CPU, shapes, dtype, shift=shift), small)
            eager = cases.solving(device, cases.SHAPES["odd sizes"], dtype, graph=False)
            compare("eager solve", eager, cases.solving_truth(cases.SHAPES["odd sizes"], dtype), small)
            compare("inputs kept", cases.keeping(device, dtype), cases.keeping_truth(dtype), small)
    return failures, {"devices": devices, "arrays_compared": compared}


def check_training(device: str) -> Outcome:
    """Step 2."""
    failures, losses = [], {}
    # float64 shows that it is the same computation; in float32 a network amplifies rounding from step to step
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-3)):
        truth = cases.training(CPU, dtype, "plain")
        for path in ("op", "plain"):
            got = cases.training(device, dtype, path)
            losses[f"{dtype}, {path}"] = got["loss"].tolist()
            failures += [f"{dtype}, {path} path: {found}" for found in cases.differences(got, truth, tolerance)]
        losses[f"{dtype}, plain on the CPU"] = truth["loss"].tolist()
    return failures, {"losses": losses}


def check_transfers(device: str, shapes: list[tuple[int, ...]]) -> Outcome:
    """Step 3."""
    few, many = 4, 14
    failures: list[str] = []
    traffic = {}
    kind = tf.DeviceSpec.from_string(device).device_type
    for iterations in (few, many):
        solve, arguments = cases.solve_function(device, shapes, "float32", iterations=iterations)
        function = tf.function(solve, autograph=False)

        def run(function: Callable[..., Any] = function, arguments: Any = arguments) -> int:
            return int(function(*arguments)[1])

        placed = transfers.placement(run)
        if len(placed.ops) != 5 or any(devices != {kind} for devices in placed.ops.values()):
            failures.append(f"the ops' devices are {placed.ops}, and all five should be on {kind}")
        if run() != iterations:
            failures.append(f"the solve ended before {iterations} iterations")
        if kind == "GPU":
            traffic[iterations] = transfers.traced(run)
    vector = 4 * sum(int(tf.TensorShape(s).num_elements()) for s in shapes)
    figures: dict[str, Any] = {"vector_bytes": vector, "crossing_in_the_loop": placed.crossing_in_loops}
    if kind != "GPU":
        return failures, {**figures, "note": "no GPU: nothing to trace"}
    if not traffic[many].events:
        return [*failures, "the profiler saw no GPU events (is CUPTI installed?), so nothing is proven"], figures
    turns = many - few
    crossing = (traffic[many].crossing_bytes() - traffic[few].crossing_bytes()) / turns
    passes = (traffic[many].passes - traffic[few].passes) / turns
    on_device = traffic[many].copied_bytes.get("MemcpyD2D", 0) - traffic[few].copied_bytes.get("MemcpyD2D", 0)
    figures |= {
        "host_bytes_per_iteration": crossing,
        "passes_per_iteration": passes,
        "device_copy_bytes_per_iteration": on_device / turns,
        "copies": {str(k): t.copies for k, t in traffic.items()},
    }
    if crossing > 1024:
        failures.append(f"{crossing:.0f} bytes cross between host and GPU in an iteration; a few are expected")
    if passes != 2:
        failures.append(f"{passes:g} fused passes in an iteration, not 2")
    if on_device > vector:
        failures.append(f"{on_device / turns:.0f} bytes are copied on the GPU in an iteration: not in place")
    return failures, figures


def time_solves(device: str, shapes: list[tuple[int, ...]]) -> Outcome:
    """Step 4: seconds of an iteration, products (one multiplication) included."""
    few, many, repeats = 2, 22, 5
    seconds = {}
    for path in ("op", "plain"):
        times = {}
        for iterations in (few, many):
            solve, arguments = cases.solve_function(device, shapes, "float32", iterations=iterations, path=path)
            function = tf.function(solve, autograph=False)
            took = []
            for _ in range(repeats + 2):
                start = time.perf_counter()
                float(function(*arguments)[3])  # waits for the result
                took.append(time.perf_counter() - start)
            times[iterations] = statistics.median(took[2:])
        seconds[path] = (times[many] - times[few]) / (many - few)
    figures = {"tensors": len(shapes), "seconds_per_iteration": seconds, "speedup": seconds["plain"] / seconds["op"]}
    return [], figures


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's 161 trainable tensors, 25.6 million numbers: without Keras' biases of convolutions."""
    with tf.device(CPU):
        model = keras.applications.ResNet50(weights=None)
    weights = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    others = [v for v in model.trainable_variables if v.name in ("gamma", "beta")]
    return [tuple(v.shape) for v in (*weights, *others, model.layers[-1].bias)]


def environment(device: str) -> dict[str, Any]:
    """What the figures were measured with."""
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    return {
        "device": details.get("device_name", platform.processor() or platform.machine()) if device != CPU else "CPU",
        "gpus": len(gpus),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def why_not(allow_cpu: bool) -> tuple[str, int] | None:
    """What hinders the check, and the exit code for it."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and not allow_cpu:
        build = "GPU" if tf.test.is_built_with_cuda() else "CPU-only"
        return (
            f"no GPU: TensorFlow {tf.__version__} (a {build} build) sees none. This check needs a machine with an "
            "NVIDIA GPU and a GPU build: make gpu-check-tf TENSORFLOW=tensorflow-cuda. For a rehearsal on the CPU: "
            "python tests/gpu/check_tensorflow.py --allow-cpu"
        ), NO_GPU
    if oplib.load() is None:
        return f"the op library does not load: {oplib.why_not()}", 1
    reason = oplib.why_not_on_gpu() if gpus else None
    return (reason, 1) if reason else None


def main(arguments: list[str] | None = None) -> int:
    """Run the steps; a step that raises has failed, and the next one runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--allow-cpu", action="store_true", help="rehearse on the CPU where there is no GPU")
    parser.add_argument("--quick", action="store_true", help="no vectors of millions of elements")
    parser.add_argument(
        "--out", type=Path, help=f"where the JSON goes (default: {RESULTS.parent.name}/results; no file on the CPU)"
    )
    options = parser.parse_args(arguments)
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:  # TensorFlow would take all memory of all GPUs
        tf.config.experimental.set_memory_growth(gpu, True)
    hindrance = why_not(options.allow_cpu)
    if hindrance:
        print(f"gpu-check-tf: {hindrance[0]}", file=sys.stderr)
        return hindrance[1]
    tf.config.experimental.enable_tensor_float_32_execution(False)  # 10-bit mantissas are no rounding of float32

    devices = [f"/GPU:{i}" for i in range(len(gpus))] or [CPU]
    record: dict[str, Any] = {"environment": environment(devices[0]), "steps": {}}
    print(f"gpu-check-tf on {record['environment']['device']}, TensorFlow {tf.__version__}")
    weights = cases.SHAPES["161 tensors"] if options.quick else resnet50()
    steps: dict[str, Callable[[], Outcome]] = {
        "ops": lambda: check_ops(devices, large=not options.quick),
        "training": lambda: check_training(devices[0]),
        "transfers": lambda: check_transfers(devices[0], weights),
        "time": lambda: time_solves(devices[0], weights),
    }
    for name, step in steps.items():
        start = time.perf_counter()
        try:
            failures, figures = step()
        except Exception as error:  # whatever it is, the other steps may still tell something
            traceback.print_exc()
            failures, figures = [f"{type(error).__name__}: {error}"], {}
        print(f"{'FAILED' if failures else 'passed'}  {name} ({time.perf_counter() - start:.0f} s)  {figures}")
        for failure in failures:
            print(f"        {failure}")
        record["steps"][name] = {"passed": not failures, "failures": failures, "figures": figures}
    if gpus or options.out:
        print(f"written: {write(record, options.out or RESULTS)}")
    return 0 if all(step["passed"] for step in record["steps"].values()) else 1


def write(record: dict[str, Any], where: Path) -> Path:
    """Write ``tensorflow-<device>-<date>.json``, all or nothing."""
    where.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", record["environment"]["device"].lower()).strip("-")
    path = where / f"tensorflow-{device}-{record['environment']['date'][:10]}.json"
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
