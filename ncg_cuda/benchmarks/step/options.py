"""The command line of ``ncg-cuda bench step``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import problems


def add(
    benchmarks: argparse._SubParsersAction[argparse.ArgumentParser],
    *,
    directory: Callable[[str], Path],
    positive_int: Callable[[str], int],
    seconds: Callable[[str], float],
) -> None:
    """Add the command; the functions read its arguments."""
    command = benchmarks.add_parser(
        "step",
        help="one Newton step in gradients: time, memory, tracing, and what they are spent on",
        description=(
            "Measure one Newton step of m CG iterations in units of one gradient (forward and backward pass, one SGD "
            "update) of the same model and batch, which runs in turns with it: time, split into linearisation, "
            "products, vector work and rest; peak memory; tracing. Beside the fused design, the one in plain "
            "TensorFlow operations, and one with the structure of the published implementation. Needs TensorFlow; "
            "runs on the CPU, each configuration in a process of its own. Prints a report with the targets, and "
            "writes step.json, step.txt and step.png. Exit code: 0; 1 if a configuration failed; 2 if it cannot run "
            "as given. The full set takes about an hour on 2 cores."
        ),
        epilog="Example: ncg-cuda bench step --models mlp --curvature hessian --out out/step",
    )
    command.add_argument(
        "--models", metavar="LIST", help=f"comma-separated, of: {', '.join(problems.MODELS)} ({problems.DEFAULT})"
    )
    command.add_argument("--batch", type=positive_int, metavar="N", help="examples (128 for the MLP, 8 for images)")
    command.add_argument(
        "--image-size", type=positive_int, default=64, metavar="N", help="height and width of an image (64)"
    )
    command.add_argument(
        "--iterations", type=positive_int, metavar="M", help="CG iterations of a step, each with one product (20)"
    )
    command.add_argument(
        "--curvature",
        default="hessian,gauss-newton",
        metavar="LIST",
        help="comma-separated, of: hessian, gauss-newton (both)",
    )
    command.add_argument(
        "--designs",
        default="fused,plain,reference",
        metavar="LIST",
        help="comma-separated, of: fused, plain, reference (all; reference with the Hessian only)",
    )
    command.add_argument(
        "--repeats", type=positive_int, metavar="N", help="repetitions, of which the median counts (7)"
    )
    command.add_argument(
        "--part-seconds",
        type=seconds,
        default=120.0,
        metavar="S",
        help="of a configuration, repeat no further after S seconds, but at least 5 times; 0: no limit (120)",
    )
    command.add_argument(
        "--quick", action="store_true", help="a trial, not a measurement: a small model, 5 iterations, 2 repetitions"
    )
    command.add_argument(
        "--out",
        type=directory,
        default=Path("out/step"),
        metavar="DIR",
        help="directory for the results; made if missing (out/step)",
    )
    command.add_argument("--quiet", action="store_true", help="no progress on standard error")
    command.set_defaults(run=_run, command="bench step")


def _run(options: Any) -> int:
    from .command import Plan, run

    return run(
        Plan(
            out=options.out,
            models=options.models or (problems.QUICK if options.quick else problems.DEFAULT),
            batch=options.batch,
            image_size=options.image_size,
            iterations=options.iterations or (5 if options.quick else 20),
            curvature=options.curvature,
            designs=options.designs,
            repeats=options.repeats or (2 if options.quick else 7),
            part_seconds=options.part_seconds,
            quick=options.quick,
            quiet=options.quiet,
        )
    )
