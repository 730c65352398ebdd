"""What the kernels are meant to reach, and whether a run reached it. Figures of a benchmark; no test asserts them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .operations import CG_PASSES

if TYPE_CHECKING:
    from .iteration import Result
    from .records import AtSize

LARGE = 25_000_000
"""Elements from which a vector counts as large: far beyond any cache."""


@dataclass(frozen=True)
class Verdict:
    """One target in one run."""

    target: str
    at: str
    wanted: str
    found: str
    met: bool | None
    """None: not measured in this run."""

    @property
    def word(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def judge(sizes: Iterable[AtSize], on_gpu: bool) -> list[Verdict]:
    """The verdicts on all targets of the device."""
    sizes = list(sizes)
    large = [at for at in sizes if at.size.layout is None and at.size.n >= LARGE]
    verdicts: list[Verdict] = []
    percent = 92 if on_gpu else 90
    for at in large:
        verdicts += [_pass(at, name, percent) for name in CG_PASSES]
    standard = [at for at in large if at.size.n < 2 * LARGE] or large[:1]
    if on_gpu:
        wanted: list[tuple[str, tuple[str, ...], float]] = [
            ("iteration against plain CuPy", ("CuPy",), 2.3),
            ("iteration against cupyx cg", ("cupyx cg",), 2.0),
            ("iteration against the best of torch.compile and JAX", ("torch.compile", "JAX"), 1.25),
        ]
    else:
        wanted = [
            ("iteration against TensorFlow graph code", ("TensorFlow graph",), 4.0),
            ("iteration against TensorFlow XLA", ("TensorFlow XLA",), 4.0),
            ("iteration against the best of JAX and torch.compile", ("torch.compile", "JAX"), 1.0),
        ]
    for at in standard:
        verdicts += [_faster(at, text, names, factor) for text, names, factor in wanted]
    for at in sizes:
        if at.size.layout is None:
            continue
        if on_gpu:
            verdicts.append(_faster(at, "per tensor, iteration against CuPy per tensor", ("CuPy",), 10.0))
        verdicts += [_as_flat(at, name) for name in CG_PASSES]
    if on_gpu:
        verdicts += [_launches(at) for at in sizes if at.iteration is not None]
        verdicts += [_short(at) for at in sizes if at.size.n == 100_000 and at.size.layout is None]
    return verdicts


def _pass(at: AtSize, name: str, percent: float) -> Verdict:
    text, wanted = f"{name} against its yardstick", f">= {percent:g} %"
    for result in at.operations.results if at.operations else []:
        if result.operation == name and result.tensors == 1 and result.percent_of_yardstick is not None:
            found = result.percent_of_yardstick
            say = f"{found.median:.0f} % [{found.low:.0f} … {found.high:.0f}]"
            return Verdict(text, at.size.label, wanted, say, found.median >= percent)
    return Verdict(text, at.size.label, wanted, "", None)


def _as_flat(at: AtSize, name: str) -> Verdict:
    text, wanted = f"{name} on {at.size.tensors} tensors against flat", "<= 1.05x the time"
    for result in at.operations.results if at.operations else []:
        if result.operation == name and result.versus_flat is not None:
            found = result.versus_flat
            say = f"{found.median:.2f}x [{found.low:.2f} … {found.high:.2f}]"
            return Verdict(text, at.size.label, wanted, say, found.median <= 1.05)
    return Verdict(text, at.size.label, wanted, "", None)


def _faster(at: AtSize, text: str, names: tuple[str, ...], factor: float) -> Verdict:
    wanted = f">= {factor:g}x" if factor != 1.0 else "> 1x"
    rivals: list[Result] = []
    for result in at.iteration.results if at.iteration else []:
        named = any(result.contender == name or result.contender.startswith(f"{name} ") for name in names)
        if named and result.ours_is_faster is not None and not result.contender.startswith("CuPy,"):
            rivals.append(result)
    if not rivals:
        return Verdict(text, at.size.label, wanted, "", None)
    best = min(rivals, key=lambda result: result.ours_is_faster.median if result.ours_is_faster else 0.0)
    found = best.ours_is_faster
    assert found is not None
    say = f"{found.median:.2f}x [{found.low:.2f} … {found.high:.2f}]"
    if len(names) > 1:
        say += f" against {best.contender}"
    met = found.median >= factor if factor != 1.0 else found.median > 1.0
    return Verdict(text, at.size.label, wanted, say, met)


def _launches(at: AtSize) -> Verdict:
    assert at.iteration is not None
    for result in at.iteration.results:
        if "graph" in result.contender and result.peer == "ours" and result.launches is not None:
            found = result.launches
            return Verdict("launches of an iteration", at.size.label, "2", f"{found:g}", found <= 2)
    return Verdict("launches of an iteration", at.size.label, "2", "", None)


def _short(at: AtSize) -> Verdict:
    for result in at.iteration.results if at.iteration else []:
        if "graph" in result.contender and result.peer == "ours" and result.seconds is not None:
            found = 1e6 * result.seconds.median
            return Verdict("an iteration in a CUDA graph", at.size.label, "< 10 us", f"{found:.1f} us", found < 10)
    return Verdict("an iteration in a CUDA graph", at.size.label, "< 10 us", "", None)
