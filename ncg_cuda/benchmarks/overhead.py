"""What a call of the library costs beside the work on the vectors: microseconds on tiny vectors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..layout import Layout
from .devices import Device
from .measure import Spread, reason, spread
from .sizes import resnet50_shapes

_N = 1024


def measure(device: Device, calls: int = 300, repeats: int = 7) -> dict[str, dict[str, Any]]:
    """Microseconds of one call by way of calling, as spreads over the repetitions (or the reason of a failure).

    On a GPU this is the time of the host alone: the launches are queued, and waited for after the clock is read.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, call in _ways(device).items():
        try:
            found = _time(device, call, calls if "tensors" not in name else max(1, calls // 10), repeats)
            results[name] = {"microseconds": None if found is None else found.as_json()}
        except Exception as error:
            results[name] = {"failed": reason(error)}
    return results


def _time(device: Device, call: Callable[[], Any], calls: int, repeats: int) -> Spread | None:
    values = []
    for _ in range(repeats):
        call()
        device.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        values.append(1e6 * (time.perf_counter() - start) / calls)
        device.synchronize()
    return spread(values)


def _ways(device: Device) -> dict[str, Callable[[], Any]]:
    hp, p, x, r = (device.random(_N, seed, 0.5, 1.5) for seed in range(4))
    workspace = ops.Workspace(p)
    layout = Layout([(1,)] * len(resnet50_shapes()))
    tensors = [device.random(1, i, 0.5, 1.5) for i in range(len(layout.shapes))]
    long = device.random(layout.size, 0, 0.5, 1.5)
    with_table = ops.Workspace(long, len(layout.shapes))
    scalars: dict[str, Any] = {"alpha": 1e-6, "beta": 1e-6, "tau": 0.1}
    return {
        "damped_curvature": lambda: ops.damped_curvature(hp, p, 0.1, workspace=workspace),
        "damped_curvature, its own workspace": lambda: ops.damped_curvature(hp, p, 0.1),
        f"damped_curvature, {len(tensors)} tensors": lambda: ops.damped_curvature(
            tensors, long, 0.1, layout=layout, workspace=with_table
        ),
        "cg_update": lambda: ops.cg_update(x, r, p, hp, workspace=workspace, **scalars),
        "numpy dot, for comparison": (lambda: float(np.dot(hp, p))) if not device.on_gpu else (lambda: hp @ p),
    }
