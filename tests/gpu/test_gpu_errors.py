"""Mistakes with arrays on a GPU: an error that names the argument, before anything is launched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ncg_cuda import Layout, cg, ops

pytestmark = pytest.mark.gpu


@pytest.fixture
def four(cp: Any) -> list[Any]:
    """The vectors x, r, p, hp."""
    return [cp.asarray(np.full(64, v, np.float32)) for v in (1.0, 2.0, 3.0, 4.0)]


def unchanged(four: list[Any]) -> bool:
    return [float(v[63]) for v in four] == [1.0, 2.0, 3.0, 4.0]


def test_operands_that_do_not_go_together(cp: Any, four: list[Any]) -> None:
    x, r, p, hp = four
    steps = {"alpha": 0.5, "beta": 0.3}
    for bad, error, match in [
        (hp.get(), ValueError, "x: on cuda:0, but hp is on cpu; move one of them"),
        (hp.astype(np.float64), TypeError, "hp: dtype float64, but p has float32"),
        (hp[:63], ValueError, "x: 64 elements, but hp has 63"),
        (cp.asarray(np.ones(128, np.float32))[::2], ValueError, "hp: not contiguous"),
        (cp.asarray(np.ones(65, np.float32))[1:], ValueError, r"hp: its memory starts at .*, not on a multiple of 16"),
        (cp.asarray(np.ones(64, np.int32)), TypeError, "hp: dtype int32; allowed are float32, float64 and bfloat16"),
        ([hp[:32], hp[32:].get()], ValueError, r"hp\[1\]: on cpu, but .* is on cuda:0"),
        ([hp[:32]], ValueError, "hp: its layout needs flat vectors of 32 elements"),
        ("hp", TypeError, "hp: got str"),
    ]:
        with pytest.raises(error, match=match):
            ops.cg_update(x, r, p, bad, **steps)
    with pytest.raises(ValueError, match="x and hp overlap in memory, and x is written"):
        ops.cg_update(x, r, p, x, **steps)
    with pytest.raises(ValueError, match=r"x and hp\[0\] overlap in memory, and x is written"):
        ops.cg_update(x, r, p, [x], **steps)
    with pytest.raises(ValueError, match="hp: an empty vector"):
        ops.cg_update(x[:0], r[:0], p[:0], hp[:0], **steps)
    assert unchanged(four)


def test_workspaces_that_do_not_fit(cp: Any, four: list[Any]) -> None:
    p, hp = four[2:]
    with pytest.raises(ValueError, match=r"workspace: made for 63 elements on cuda:0, but p has 64 on cuda:0"):
        ops.damped_curvature(hp, p, workspace=ops.Workspace(p[:63]))
    with pytest.raises(ValueError, match=r"workspace: made for 64 elements on cpu"):
        ops.damped_curvature(hp, p, workspace=ops.Workspace(p.get()))
    layout = Layout([(1,)] * 162)
    flat = cp.zeros(layout.size, np.float32)
    with pytest.raises(ValueError, match=r"workspace: made for 0 tensors, but 162 are given; .* segments=162"):
        ops.damped_curvature(layout.views(flat + np.float32(1)), flat, workspace=ops.Workspace(flat))


def test_solves(cp: Any, four: list[Any]) -> None:
    b = four[0]
    for options, error, match in [
        ({"x0": b.get()}, TypeError, r"x0: got numpy.ndarray; give an array like b \(cupy.ndarray\)"),
        ({"x0": b[:9]}, ValueError, "x0: 9 elements of float32 on cuda:0, but b has 64"),
        ({"preconditioner": b.astype(np.float64)}, ValueError, "preconditioner: 64 elements of float64 on cuda:0"),
        ({"poll": -1}, ValueError, "poll: -1"),
        ({"poll": 0, "verify": True}, ValueError, "verify: not possible with poll=0"),
        ({"poll": 0, "callback": print}, ValueError, "callback: not possible with poll=0"),
        ({"tau": float("nan")}, ValueError, "tau: nan"),
    ]:
        with pytest.raises(error, match=match):
            cg(lambda p: p, b, **options)
    for matvec, error, match in [
        (lambda p: p.get(), TypeError, r"matvec: returned numpy.ndarray; it must return an array like b"),
        (lambda p: p[:5], ValueError, r"matvec: returned shape \(5,\), but b has \(64,\)"),
        (lambda p: p.astype(np.float64), TypeError, "matvec: returned dtype float64, but b has float32"),
        (lambda p: [p], TypeError, "returned a sequence of arrays; give .*layout"),
        (lambda p: None, TypeError, "matvec: returned NoneType"),
    ]:
        with pytest.raises(error, match=match):
            cg(matvec, b)
    assert unchanged(four)
