"""``depth_leres++``: where it looks again, and how what it finds there is laid in."""

from __future__ import annotations

import numpy as np
import pytest

from sd_cloud.engines.diffusion.preprocess import leres_boost
from sd_cloud.engines.diffusion.preprocess.leres_boost import Piece, best_size, fade, pieces, refined
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench


def detail(height: int, width: int, *places: tuple[slice, slice]) -> Pixels:
    """Grey, with noise at the places."""
    image = np.full((height, width, 3), 128, np.uint8)
    for place in places:
        shape = image[place].shape
        image[place] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return image


def test_a_picture_full_of_edges_is_looked_at_three_times_as_large_and_an_empty_corner_forbids_it() -> None:
    everywhere = slice(None), slice(None)
    size, share = best_size(detail(512, 512, everywhere))
    assert size == 42 * 32 and share == pytest.approx(1, abs=0.01)  # the last step below 3 * 512 px
    size, share = best_size(detail(512, 512, (slice(0, 96), slice(0, 96))))
    assert size == leres_boost.FIELD_PX and share < 0.2
    assert best_size(detail(640, 640, everywhere))[0] == 49 * 32  # never above 1600 px


def test_pieces_lie_where_the_detail_is_and_grow_while_it_fills_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leres_boost, "FIELD_PX", 64)
    corner = slice(0, 300), slice(500, 800)
    found = pieces(detail(600, 800, corner), 1.0)
    assert found and all(piece.left + piece.side > 500 and piece.top < 300 for piece in found)
    sides = [piece.side for piece in found]
    assert sides == sorted(sides, reverse=True) and sides[0] > sides[-1] == 128
    assert all(piece.left >= 0 and piece.top >= 0 for piece in found)
    assert all(piece.left + piece.side <= 800 and piece.top + piece.side <= 600 for piece in found)
    smaller = pieces(detail(600, 800, corner), 0.2)
    assert {(piece.side - 128) % 160 for piece in smaller} == {0}  # grown by 32 px / factor


def test_a_piece_counts_in_its_middle_and_fades_out_to_its_edge() -> None:
    share = fade((90, 120))
    assert share.shape == (90, 120) and share[45, 60] == pytest.approx(1, abs=0.01)
    assert share[0].max() < 0.02 and share[:, 0].max() < 0.02
    assert (np.diff(share[45, :60]) >= 0).all() and (np.diff(share[45, 60:]) <= 1e-6).all()


def test_a_pieces_depth_is_brought_to_the_wholes_values_before_it_is_laid_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    down = np.linspace(2, 5, 200, dtype=np.float32)[:, None] * np.ones((1, 300), np.float32)
    looks: list[tuple[int, ...]] = []

    def at_two_sizes(bench: Bench, image: Pixels, fine_px: int) -> np.ndarray:
        looks.append((*image.shape, fine_px))
        return np.zeros((leres_boost.MERGED_PX,) * 2, np.float32)

    def merged(bench: Bench, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        dent = coarse.copy()
        dent[500:520, 500:520] += 3
        return (dent - 2) / 30  # another zero and another unit

    monkeypatch.setattr(leres_boost, "at_two_sizes", at_two_sizes)
    monkeypatch.setattr(leres_boost, "_merged", merged)
    image = detail(400, 600)
    made = refined(Bench({}), image, down, [Piece(100, 50, 200)], 0.5)
    assert looks == [(100, 100, 3, 2 * leres_boost.FIELD_PX)]
    outside = np.ones_like(made, bool)
    outside[25:125, 50:150] = False
    assert (made[outside] == down[outside]).all()
    changed = made - down
    assert changed[74, 99] > 1 and np.abs(changed[60, 60:90]).max() < 0.1
