"""Preprocessors that paint under a mask or give each thing in a picture its colour, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sd_cloud.engines.diffusion.preprocess import lama
from sd_cloud.engines.diffusion.preprocess.detect import Detection, detect
from sd_cloud.engines.diffusion.preprocess.loading import _loaded
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.settings import Settings, settings_below
from tests.engines.diffusion.test_preprocess_networks import picture, write


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
