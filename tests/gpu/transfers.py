"""What crossed between host and GPU during a call, by TensorFlow's profiler, and where the op's kernels were placed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.tsl.profiler.protobuf import xplane_pb2

CROSSING = ("MemcpyH2D", "MemcpyD2H")


@dataclass
class Traffic:
    """Copies by kind, and launches of the CUDA engine's passes."""

    events: int = 0
    """Everything that the trace shows of GPUs; 0: the trace has nothing to say."""
    copies: dict[str, int] = field(default_factory=dict)
    copied_bytes: dict[str, int] = field(default_factory=dict)
    passes: int = 0

    def crossing_bytes(self) -> int:
        """Bytes between host and GPU, both ways."""
        return sum(self.copied_bytes.get(kind, 0) for kind in CROSSING)


def read_trace(space: Any) -> Traffic:
    """The traffic in a trace: an ``XSpace`` as TensorFlow's profiler writes it."""
    traffic = Traffic()
    for plane in space.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):  # other lines repeat the same events, grouped by step or module
                continue
            for event in line.events:
                traffic.events += 1
                name = plane.event_metadata[event.metadata_id].name
                if re.search(r"ncg\w*cuda\w*pass|ncg::cuda::pass", name):
                    traffic.passes += 1
                if name.startswith("Memcpy"):
                    kind = name.split()[0]
                    traffic.copies[kind] = traffic.copies.get(kind, 0) + 1
                    traffic.copied_bytes[kind] = traffic.copied_bytes.get(kind, 0) + _size(plane, event)
    return traffic


def _size(plane: Any, event: Any) -> int:
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name != "memcpy_details":
            continue
        text = plane.stat_metadata[stat.ref_value].name if stat.WhichOneof("value") == "ref_value" else stat.str_value
        found = re.search(r"size:(\d+)", text)
        if found:
            return int(found[1])
    raise ValueError("the trace does not say how many bytes a copy moved (no memcpy_details with a size)")


def traced(call: Callable[[], Any]) -> Traffic:
    """Run the call under the profiler; it must wait for its own result."""
    with tempfile.TemporaryDirectory() as where:
        tf.profiler.experimental.start(where)
        try:
            call()
        finally:
            tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        for file in Path(where).rglob("*.xplane.pb"):
            space.MergeFromString(file.read_bytes())
    return read_trace(space)


@dataclass
class Placement:
    """Of one function's graphs, as TensorFlow cut them up for the devices."""

    ops: dict[str, set[str]] = field(default_factory=dict)
    """The devices of each kind of ncg op and convolution, such as ``{"NcgPack": {"GPU"}}``."""
    crossing_in_loops: list[str] = field(default_factory=list)
    """Floating-point tensors, scalars included, that go from one device to another inside a while loop."""


def placement(first_call: Callable[[], Any]) -> Placement:
    """Where the first call of a ``tf.function`` puts its ops; only a first call shows it."""
    context.context().enable_run_metadata()
    try:
        first_call()
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_run_metadata()
    found = Placement()
    for graphs in metadata.function_graphs:
        for graph in graphs.partition_graphs:
            for node in graph.node:
                if node.op.startswith("Ncg") or "Conv2D" in node.op:
                    kind = tf.DeviceSpec.from_string(node.device).device_type
                    found.ops.setdefault(node.op, set()).add(str(kind))
                if node.op in ("_Recv", "_HostRecv") and re.search(r"while/(?!exit)", node.name):
                    dtype = tf.as_dtype(node.attr["tensor_type"].type)
                    if dtype.is_floating and node.attr["send_device"].s != node.attr["recv_device"].s:
                        found.crossing_in_loops.append(f"{node.name} ({dtype.name})")
    return found
