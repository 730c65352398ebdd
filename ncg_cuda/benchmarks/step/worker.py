"""One configuration in a process of its own: ``python -m ncg_cuda.benchmarks.step.worker JSON``.

Its standard output is lines of JSON: ``{"phase": text}`` as it goes on, ``{"result": …}`` or ``{"failed": reason}`` at
the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

_TAUS = 24
"""Damping values tried at most."""
_STEPS = 2
"""Steps, beside the first, after which the peak of memory is taken."""


def main(text: str) -> int:
    """Do the job that the JSON text describes: model, batch, image_size, job, and what the job needs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    from ..measure import reason

    try:
        _say(result=measure(json.loads(text)))
    except Exception as error:
        _say(failed=reason(error))
        return 1
    return 0


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def _phase(text: str) -> None:
    _say(phase=text)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The figures of the job; ``baseline`` builds model and data, ``gradient`` also takes gradient steps."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # resident memory and these clocks are those of the CPU
    from ...tf import oplib
    from . import designs, memory, problems

    oplib.load()  # its code is not memory of a step
    _phase("building the model")
    problem = problems.build(job["model"], job["batch"], job["image_size"])
    if job["job"] == "baseline":
        return {"peak": memory.peak(), "weights": problem.weights, "tensors": len(problem.variables)}
    if job["job"] == "gradient":
        gradient = designs.gradient_step(problem)
        record = _trace(gradient, f"{job['title']} (gradient)")
        for _ in range(_STEPS):
            gradient()
        return record | {"peak": memory.peak()}
    return _design(job, problem)


def _trace(function: Any, title: str) -> dict[str, Any]:
    """Trace a function without arguments and call it once, in seconds."""
    from . import memory

    _phase(f"tracing {title}")
    started = time.perf_counter()
    nodes = _count(function.get_concrete_function().graph)
    traced = time.perf_counter()
    graph = memory.peak()
    _phase(f"first step of {title}: TensorFlow optimises {nodes:,} graph nodes")
    function()
    first = time.perf_counter() - traced
    return {"trace_seconds": traced - started, "first_seconds": first, "nodes": nodes, "peak_of_tracing": graph}


def _count(graph: Any) -> int:
    definition = graph.as_graph_def()
    return len(definition.node) + sum(len(f.node_def) for f in definition.library.function)


def _design(job: dict[str, Any], problem: Any) -> dict[str, Any]:
    from . import designs, memory, timing

    title = f"{job['title']} ({job['curvature']}, {job['design']})"
    step = designs.build(problem, job["design"], job["curvature"], job["iterations"])
    record = _trace(step.step, title)
    _phase("choosing the damping at which CG needs all its iterations")
    tau = _choose_tau(step, job["iterations"])
    record |= {"tau": tau, "products": step.products()}
    if record["products"] != job["iterations"]:
        raise RuntimeError(f"{record['products']} products were made instead of {job['iterations']}")
    _phase("memory")
    for _ in range(_STEPS):
        step.step()
    record["peak"] = memory.peak()

    _phase("tracing the gradient and the parts of the step")
    gradient, vector_work = designs.gradient_step(problem), step.make_vector_work()
    timed = timing.clocks(step, vector_work, designs.stand_in_alone(problem, job["iterations"]))
    made = int(vector_work()[1])
    if made != job["iterations"]:
        raise RuntimeError(f"the vector work was that of {made} iterations instead of {job['iterations']}")
    rounds = timing.run(timed, gradient, job["repeats"], job["seconds"], lambda name: _say(step=name))
    step.set_solving(True)
    step.step()
    if step.products() != job["iterations"]:
        raise RuntimeError(f"at the end {step.products()} products were made instead of {job['iterations']}")
    return record | {"seconds": rounds.seconds}


def _choose_tau(step: Any, iterations: int) -> float:
    """A damping with which a step makes all its products: larger after negative curvature, smaller after convergence.

    Bisected in logarithms, once both have been met.
    """
    tau, low, high = 1.0, 0.0, 0.0
    step.set_solving(True)
    for _ in range(_TAUS):
        step.set_tau(tau)
        step.step()
        if step.products() == iterations:
            return tau
        if step.converged():
            high = tau
        else:
            low = tau
        tau = (low * high) ** 0.5 if low and high else (8.0 * tau if low else tau / 8.0)
    raise RuntimeError(f"no damping made CG take {iterations} iterations: give fewer")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
