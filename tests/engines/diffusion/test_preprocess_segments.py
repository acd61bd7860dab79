"""Preprocessors that paint under a mask or give each thing in a picture its colour, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sd_cloud.engines.diffusion.preprocess import lama, oneformer
from sd_cloud.engines.diffusion.preprocess.detect import Detection, detect
from sd_cloud.engines.diffusion.preprocess.loading import _loaded
from sd_cloud.engines.diffusion.preprocess.palettes import ADE20K
from sd_cloud.engines.diffusion.preprocess.segment_drawing import drawn, outline_px
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.settings import Settings, settings_below
from tests.engines.diffusion.test_preprocess_networks import FILES, picture, write


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield settings_below(tmp_path)
    _loaded.cache_clear()


def test_lama_paints_under_the_mask_alone_and_half_where_the_mask_is_half(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("lama/ControlNetLama.pth", settings)
    monkeypatch.setattr(lama, "RESOLUTION", 64)
    image, mask = picture(72, 90), np.zeros((72, 90), np.uint8)
    mask[20:40, 30:60], mask[50:60, 10:20] = 255, 100
    made = detect(MODULES["inpaint_only+lama"], np.dstack([image, mask]), Detection(), settings)
    assert made.shape == (72, 90, 4) and (made[:, :, 3] == mask).all()
    assert (made[mask == 0, :3] == image[mask == 0]).all()
    painted = made[mask == 255, :3].astype(int)
    assert np.abs(painted - image[mask == 255]).mean() > 20
    # Below a half the network sees no mask and gives what is there: what is laid over it changes little.
    assert np.abs(made[mask == 100, :3].astype(int) - image[mask == 100]).mean() < 20


ADE20K_FILE, COCO_FILE = (
    f"oneformer/{name}.pth"
    for name in ("250_16_swin_l_oneformer_ade20k_160k", "150_16_swin_l_oneformer_coco_100ep")
)


@pytest.mark.parametrize(
    ("file", "kind", "queries"), [(ADE20K_FILE, oneformer.ADE20K, 250), (COCO_FILE, oneformer.COCO, 150)]
)
def test_oneformers_published_tensors_fill_transformers_network_of_that_size(
    file: str, kind: oneformer.Kind, queries: int
) -> None:
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in FILES[file].shapes.items()}
        state = oneformer.in_transformers_names(published)
        net = oneformer.network(state)
    net.load_state_dict(state, strict=True, assign=True)
    assert net.config.num_queries == queries and net.config.num_attention_heads == 8
    assert net.config.num_labels == len(kind.palette)
    assert net.config.backbone_config.depths == [2, 2, 18, 2]
    assert net.config.backbone_config.num_heads == [6, 12, 24, 48]


def test_oneformer_is_asked_for_classes_in_clips_tokens() -> None:
    tokens = oneformer.task_tokens()
    assert tokens.shape == (1, 77)
    assert tokens[0, :8].tolist() == [49406, 518, 10549, 533, 29119, 1550, 49407, 0]


def test_oneformer_sees_the_shorter_side_at_its_size_unless_the_longer_one_grows_too_long() -> None:
    assert oneformer.size_seen(512, 384, oneformer.ADE20K) == (853, 640)
    assert oneformer.size_seen(128, 640, oneformer.ADE20K) == (512, 2560)
    assert oneformer.size_seen(512, 512, oneformer.COCO) == (800, 800)
    assert oneformer.size_seen(1024, 512, oneformer.COCO) == (1333, 667)


def test_a_segment_that_surrounds_nothing_gets_a_white_outline_and_another_does_not() -> None:
    classes = np.full((64, 64), 4)
    classes[40:60, 4:30] = 9
    made = drawn(classes, ADE20K).astype(int)
    around, within = ADE20K[4].astype(int), ADE20K[9].astype(int)
    assert (made[43:57, 7:27] == within).all()
    assert (made[59, 6:28] == 255).all() and (made[42:58, 4] == 255).all()
    # The outline is 1.39 px wide: 0.19 px of it are outside of the outermost pixels.
    assert np.abs(made[60, 6:28] - (around + 0.19 * (255 - around))).max() < 12
    assert (made[62:] == around).all() and (made[:, :2] == around).all()


def test_a_segment_of_two_pixels_is_not_drawn() -> None:
    classes = np.full((64, 64), 4)
    classes[60, 2:4] = 7
    made = drawn(classes, ADE20K)
    assert not (made == ADE20K[7]).all(axis=2).any()
    assert (made[60, 2:4] > 225).all()  # what is below, or white where nothing is


def test_segments_with_holes_go_up_at_the_top_and_right_at_the_right() -> None:
    classes = np.full((64, 64), 4)
    for top, left in ((4, 4), (50, 50)):
        classes[top : top + 9, left : left + 9] = 9
        classes[top + 3 : top + 6, left + 3 : left + 6] = 7
    made = drawn(classes, ADE20K)
    colour = (made == ADE20K[9]).all(axis=2)
    assert colour[4, 4 + 4] and not colour[12, 4 + 4]
    assert not colour[50 + 4, 50] and colour[50 + 4, 58]


def test_the_outline_is_wider_on_large_maps() -> None:
    assert outline_px(512, 512) == pytest.approx(1.389, abs=1e-3)
    assert outline_px(2752, 2752) == pytest.approx(2.778, abs=1e-3)
