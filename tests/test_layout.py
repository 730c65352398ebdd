"""Places of tensors in a flat vector."""

from __future__ import annotations

import numpy as np
import pytest

from ncg_cuda import Layout


def test_places_are_padded_to_sixteen() -> None:
    layout = Layout([(3, 5), (), (16,), (0, 4), (17,)])
    assert layout.offsets.tolist() == [0, 16, 32, 48, 48]
    assert layout.lengths.tolist() == [15, 1, 16, 0, 17]
    assert layout.size == 80


def test_pack_and_views_are_inverse_and_share_memory() -> None:
    rng = np.random.default_rng(0)
    layout = Layout([(3, 5), (), (2, 2, 2), (0,)])
    tensors = [rng.standard_normal(s) for s in layout.shapes]
    flat = layout.pack(tensors)
    assert flat.sum() == pytest.approx(sum(t.sum() for t in tensors))  # the padding is zero
    for view, tensor in zip(layout.views(flat), tensors, strict=True):
        assert np.array_equal(view, tensor)
        assert view.base is not None
    layout.views(flat)[0][1, 2] = 42.0
    assert flat[7] == 42.0


def test_mistakes_are_named() -> None:
    layout = Layout([(3,), (2, 2)])
    with pytest.raises(ValueError, match="1 tensors given; this layout has 2"):
        layout.pack([np.zeros(3)])
    with pytest.raises(ValueError, match=r"tensor 1 has shape \(4,\); this layout has \(2, 2\)"):
        layout.pack([np.zeros(3), np.zeros(4)])
    with pytest.raises(ValueError, match=r"flat has shape \(7,\); this layout needs \(32,\)"):
        layout.views(np.zeros(7))
    with pytest.raises(ValueError, match="negative dimension"):
        Layout([(3, -1)])
    assert Layout([]).size == 0


def test_numbers_are_no_shapes() -> None:
    with pytest.raises(TypeError, match=r"Layout: got \[3, 4\]; give a sequence of shapes"):
        Layout([3, 4])  # type: ignore[list-item]
