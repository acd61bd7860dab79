"""Everything in a picture, in a colour each: the published layout, and what becomes of masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sd_cloud.engines.diffusion.preprocess import mobile_sam
from sd_cloud.engines.diffusion.preprocess.detect import Detection, Pixels, detect
from sd_cloud.engines.diffusion.preprocess.loading import Bench, _loaded
from sd_cloud.engines.diffusion.preprocess.mobile_sam import MobileSam, Segment, apart, drawn, renamed
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.settings import settings_below
from tests.engines.diffusion.test_preprocess_networks import FILES, SIDE, picture, small_sam, write


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_sam(monkeypatch)


@pytest.fixture
def no_longer() -> Iterator[None]:
    yield
    _loaded.cache_clear()


def test_the_published_file_has_the_networks_names_and_shapes() -> None:
    with torch.device("meta"):
        published = {
            key: torch.empty(shape) for key, shape in FILES["mobile_sam/mobile_sam.pt"].shapes.items()
        }
        net = MobileSam().state_dict()
    assert {key: one.shape for key, one in renamed(published).items()} == {
        key: one.shape for key, one in net.items()
    }


@pytest.mark.usefixtures("small", "no_longer")
def test_the_published_layout_gives_segments_whose_colours_the_seed_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mobile_sam, "LEAST_SURE", -np.inf)  # random weights are sure of nothing
    monkeypatch.setattr(mobile_sam, "LEAST_STEADY", 1e-9)
    settings = settings_below(tmp_path)

    def patterned(own: dict[str, torch.Tensor]) -> None:
        key = "mask_decoder.output_upscaling.3.weight"
        own[key] = torch.randn(own[key].shape, generator=torch.Generator().manual_seed(0))

    write("mobile_sam/mobile_sam.pt", settings, patterned)
    first, again, other = (
        detect(MODULES["mobile_sam"], picture(48, 40), Detection(SIDE, seed=seed), settings)
        for seed in (1, 1, 2)
    )
    assert first.shape == (SIDE, SIDE, 3) and (first == again).all() and (first != other).any()
    of_both = np.dstack([first, other]).reshape(-1, 6)
    counts = [len(np.unique(colours, axis=0)) for colours in (of_both[:, :3], of_both[:, 3:], of_both)]
    assert counts[0] > 1 and counts == [counts[0]] * 3, "the segments are the same"


class Knowing(MobileSam):
    """Sees a square of 32 px around each point, surely, steadily or not, and nothing else."""

    def __init__(self, sure: float, high: float) -> None:
        torch.nn.Module.__init__(self)
        self.sure, self.high, self.image_encoder = sure, high, torch.nn.Identity()

    def masks(self, seen: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.full((len(points), SIDE // 4, SIDE // 4), -9.0)
        for one, (across, down) in zip(logits, (points / 4).int().tolist(), strict=True):
            one[down - 4 : down + 4, across - 4 : across + 4] = self.high
        return logits, torch.full((len(points),), self.sure)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("sure", "high", "count"), [(0.9, 9.0, 4), (0.88, 9.0, 0), (0.9, 0.5, 0)])
def test_what_the_network_is_unsure_of_or_what_depends_on_where_it_is_cut_off_is_not_drawn(
    monkeypatch: pytest.MonkeyPatch, sure: float, high: float, count: int
) -> None:
    monkeypatch.setattr(mobile_sam, "LEAST_STEADY", 0.8)  # the edges of so small squares are a large part
    made = segments(monkeypatch, Knowing(sure, high))
    found = {tuple(made[down, across]) for down in (16, 48) for across in (16, 48)}
    assert len(found) == max(count, 1) and made.any() == bool(count)


def segments(monkeypatch: pytest.MonkeyPatch, net: MobileSam) -> Pixels:
    monkeypatch.setattr(Bench, "net", lambda bench, *given: net)
    return mobile_sam.segments(Bench({}), picture(SIDE, SIDE), SIDE, 1)


def square(left: int, top: int, side: int, sure: float) -> Segment:
    mask = np.zeros((40, 30), bool)
    mask[top : top + side, left : left + side] = True
    return Segment.of(mask, sure)


def test_of_boxes_that_cover_nearly_the_same_the_surest_stays() -> None:
    first, same, shifted, point = (
        square(2, 2, 11, 0.9),
        square(2, 3, 11, 0.95),
        square(9, 2, 11, 0.8),
        square(1, 30, 1, 0.7),
    )
    assert first.box == (2, 2, 12, 12) and first.area == 121
    assert apart([first, same, shifted, point]) == [same, shifted, point]
    assert apart([]) == []


def test_smaller_segments_are_drawn_upon_larger_ones() -> None:
    small, large = square(4, 4, 3, 0.99), square(2, 2, 20, 0.9)
    made = drawn([small, large], (40, 30), np.random.RandomState(5))
    colours = np.random.RandomState(5)
    expected = [[colours.randint(255, dtype=np.uint8) for _ in range(3)] for _ in range(2)]
    assert made[10, 10].tolist() == expected[0] and made[5, 5].tolist() == expected[1]
    assert not made[30].any() and (made == drawn([large, small], (40, 30), np.random.RandomState(5))).all()


@pytest.mark.usefixtures("small")
def test_sides_are_brought_to_the_resolution_twice_in_multiples_of_64_px(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bench, "net", lambda bench, *given: Knowing(0.0, 9.0))
    made = mobile_sam.segments(Bench({}), picture(20, 60), 544, 1)
    assert made.shape == (512, 1792, 3)
