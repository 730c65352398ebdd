"""The command line: ``ncg-cuda compare | bench | scenarios | info``."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import __version__
from .benchmarks.step import options as step_options
from .compare.errors import UsageError

_CURVATURES = ("hessian", "gauss-newton", "fisher", "empirical-fisher")


def _curvature(text: str) -> str:
    if text not in _CURVATURES:
        raise ValueError(text)
    return text


_NEWTON_SETTINGS: dict[str, Callable[[str], float | int | str]] = {
    "learning_rate": float,
    "tau": float,
    "cg_tol": float,
    "max_iter": int,
    "max_step": float,
    "curvature": _curvature,
    "curvature_batch_size": int,
    "micro_batch_size": int,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; ``argv`` without the program's name, by default the process's own. Returns the exit code.

    0: done; 2: the command cannot run as given, and standard error says why; 130: interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows "?" for a dash; it must not end the run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed help, version or error
        return int(stop.code or 0)
    if options.run is None:
        parser.print_help()
        return 2
    # TensorFlow's start-up notices are not what the user asked for; errors still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        return int(options.run(options))
    except UsageError as error:
        print(f"ncg-cuda {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ncg-cuda",
        description="Newton-CG training with exact Hessian-vector products: comparisons, scenarios, installation.",
        epilog="`ncg-cuda COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"ncg-cuda {__version__}")
    parser.set_defaults(run=None, command="")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_compare(commands)
    _add_bench(commands)
    _add_scenarios(commands)
    _add_info(commands)
    return parser


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "compare",
        help="train scenarios with several optimizers; table, records and plot",
        description=(
            "Train every SCENARIO with every optimizer on several seeds. Newton-CG runs at the scenario's settings, "
            "Adam and SGD "
            "(momentum 0.9) at the best learning rate of the scenario's grid, searched here: the rate with the lowest "
            "median over "
            "the seeds of the final training loss. Prints a table, and writes summary.json (a list of runs), grid.json "
            "(all runs "
            "of the searches), curves.csv (losses per epoch), environment.json and compare.png. Each file is complete "
            "at any "
            "moment, after Ctrl-C too."
        ),
        epilog="Example: ncg-cuda compare reg-diabetes cnn-digits --seeds 3 --out out/demo",
    )
    command.add_argument(
        "scenarios", nargs="+", metavar="SCENARIO", help="one of those that `ncg-cuda scenarios` lists"
    )
    command.add_argument(
        "--optimizers",
        default="newton-cg,adam,sgd",
        metavar="LIST",
        help="comma-separated, of: newton-cg, adam, sgd (all)",
    )
    command.add_argument("--seeds", type=_positive_int, default=3, metavar="N", help="number of seeds: 0 … N-1 (3)")
    command.add_argument("--epochs", type=_positive_int, metavar="N", help="length of every run (the scenario's own)")
    command.add_argument(
        "--batch-size", type=_positive_int, metavar="N", help="for all optimizers (the scenario's own)"
    )
    command.add_argument(
        "--out", type=_directory, required=True, metavar="DIR", help="directory for the results; made if missing"
    )
    for name in ("adam", "sgd"):
        command.add_argument(
            f"--{name}-rates",
            type=_rates,
            metavar="LIST",
            help=f"{name}'s learning rates to search (the scenario's grid)",
        )
    command.add_argument(
        "--newton",
        type=_newton_settings,
        default={},
        metavar="KEY=VALUE,…",
        help=f"Newton-CG settings instead of the scenario's: {', '.join(_NEWTON_SETTINGS)}",
    )
    command.add_argument("--quiet", action="store_true", help="no progress on standard error")
    command.set_defaults(run=_compare, command="compare")


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the native kernels, and a whole Newton step",
        description="Benchmarks; `ncg-cuda bench kernels --help` and `ncg-cuda bench step --help` explain them.",
    )

    def explain(options: argparse.Namespace) -> int:
        del options
        bench.print_help()
        return 2

    bench.set_defaults(run=explain, command="bench")
    benchmarks = bench.add_subparsers(title="benchmarks", metavar="BENCHMARK")
    command = benchmarks.add_parser(
        "kernels",
        help="every operation and the whole CG iteration, at several sizes",
        description=(
            "Measure every operation of the native core, and the vector work of a CG iteration, with cold caches: "
            "milliseconds, GB/s by counted bytes, percent of a copy and of a plain stream of the same shape, measured "
            "in the same repetitions. Other libraries run beside it where they are installed; one that fails is "
            "reported with its reason. Prints a report with the targets, and writes kernels.json, kernels.txt and "
            "kernels.png, after every part what is measured so far. Says beforehand how much memory and time it needs. "
            "Exit code: 0; 1 if one of our own kernels failed or nothing was measured; 2 if it cannot run as given."
        ),
        epilog="Example: ncg-cuda bench kernels --sizes 1e6,25.6e6 --peers numpy,torch --out out/kernels",
    )
    command.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto: the GPU where there is one (auto)"
    )
    command.add_argument(
        "--sizes",
        metavar="LIST",
        help="elements of a vector, comma-separated; resnet50: its 161 tensors; resnet50-small: 161 small ones "
        "(1e5,1e6,25.6e6,resnet50,1e8)",
    )
    command.add_argument(
        "--operations", default="all", metavar="LIST", help="names of operations, comma-separated; all; none (all)"
    )
    command.add_argument(
        "--peers",
        default="all",
        metavar="LIST",
        help="what to compare with, comma-separated, of: ours (always there), ours-tf, numpy, scipy, cupy, cupyx, "
        "tensorflow, jax, torch; all, none (all; numpy and scipy run on the CPU, cupy and cupyx on a GPU)",
    )
    command.add_argument(
        "--repeats", type=_positive_int, metavar="N", help="repetitions, of which the median counts (15)"
    )
    command.add_argument(
        "--threads", type=_positive_int, metavar="N", help="processors to use, by every library (all that are usable)"
    )
    command.add_argument(
        "--part-seconds",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="at each size, repeat no further after S seconds, but at least 5 times; 0: no limit (60)",
    )
    command.add_argument(
        "--peer-seconds",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="give a contender up whose preparation (compilation) takes longer; 0: never (120)",
    )
    command.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="S",
        help="begin no further part after S seconds; 0: no limit (none; 60 with --quick)",
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="a trial of about a minute, not a measurement: small sizes, 3 repetitions, and without "
        "contenders that compile for long, unless --peers names their library",
    )
    command.add_argument(
        "--out",
        type=_directory,
        default=Path("out/kernels"),
        metavar="DIR",
        help="directory for the results; made if missing (out/kernels)",
    )
    command.add_argument("--quiet", action="store_true", help="no progress on standard error")
    command.set_defaults(run=_bench_kernels, command="bench kernels")
    step_options.add(benchmarks, directory=_directory, positive_int=_positive_int, seconds=_seconds)


def _add_scenarios(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "scenarios",
        help="list the scenarios, their sizes and where their data come from",
        description=(
            "List the scenarios: task, sizes, defaults, the source of the data, and whether the data are here. Files "
            "are looked up "
            "in $NCG_DATA_DIR/<folder>/ and in $NCG_DATA_DIR/."
        ),
    )
    command.set_defaults(run=_scenarios, command="scenarios")


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "info",
        help="versions, backends, GPU, op library, MPI",
        description="Show versions, backends, GPU, op library and MPI: what works here, and why the rest does not.",
    )
    command.add_argument(
        "--tensorflow", action="store_true", help="also import TensorFlow (seconds) and load the op library"
    )
    command.set_defaults(run=_info, command="info")


def _compare(options: argparse.Namespace) -> int:
    from .compare import Plan, compare
    from .compare.optimizers import parse_optimizers

    rates = {"adam": options.adam_rates, "sgd": options.sgd_rates}
    return compare(
        Plan(
            scenarios=list(dict.fromkeys(options.scenarios)),
            optimizers=parse_optimizers(options.optimizers),
            out=options.out,
            seeds=options.seeds,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rates={name: values for name, values in rates.items() if values},
            newton=options.newton,
            quiet=options.quiet,
        )
    )


def _bench_kernels(options: argparse.Namespace) -> int:
    from .benchmarks.command import Plan, run
    from .benchmarks.sizes import DEFAULT, QUICK

    return run(
        Plan(
            out=options.out,
            device=options.device,
            sizes=options.sizes or (QUICK if options.quick else DEFAULT),
            operations=options.operations,
            peers=options.peers,
            repeats=options.repeats or (3 if options.quick else 15),
            threads=options.threads,
            part_seconds=options.part_seconds,
            peer_seconds=options.peer_seconds,
            time_limit=(60.0 if options.quick else 0.0) if options.time_limit is None else options.time_limit,
            quick=options.quick,
            quiet=options.quiet,
        )
    )


def _scenarios(options: argparse.Namespace) -> int:
    from . import scenarios

    del options
    for name in scenarios.names():
        scenario = scenarios.get(name)
        batch = f"batch {scenario.batch_size}" if scenario.batch_size else "full batch"
        print(f"{name}  {scenario.title}")
        print(
            f"    size     {scenario.train_size} training + {scenario.val_size} validation samples, "
            f"{scenario.parameters} weights"
        )
        print(f"    default  {scenario.epochs} epochs, {batch}; validation metric: {scenario.metric.name}")
        print(f"    source   {scenario.source}")
        print(f"    data     {'present: ' if scenario.present() else ''}{scenario.locate()}\n")
    return 0


def _info(options: argparse.Namespace) -> int:
    from .info import report

    print(report(load_tensorflow=options.tensorflow))
    return 0


def _directory(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the empty text is not a directory; for the current one give .")
    return Path(text)


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds >= 0")
    return value


def _rates(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a comma-separated list of positive numbers, such as 0.001,0.01,0.1"
        )
    return values


def _newton_settings(text: str) -> dict[str, float | int | str]:
    settings: dict[str, float | int | str] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        read = _NEWTON_SETTINGS.get(key.strip())
        if read is None:
            raise argparse.ArgumentTypeError(
                f"{key.strip()!r} is not a setting; settings: {', '.join(_NEWTON_SETTINGS)}"
            )
        try:
            settings[key.strip()] = read(value)
        except ValueError:
            kind = "a whole number" if read is int else "a number"
            example = "1"
            if read is _curvature:
                kind, example = f"one of {', '.join(_CURVATURES)}", "gauss-newton"
            raise argparse.ArgumentTypeError(
                f"{part!r}: {key.strip()} must be {kind}, such as {key.strip()}={example}"
            ) from None
    return settings
