"""``normal_dsine`` and ``depth_zoe`` around their networks: cameras, rotations, sizes, what is drawn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sd_cloud.engines.diffusion.preprocess import dsine, zoe
from sd_cloud.engines.diffusion.preprocess.dsine import Camera, View, facing, rotated
from sd_cloud.engines.diffusion.preprocess.loading import Bench


class FakeBench(Bench):
    """Gives ``network`` for any file."""

    def __init__(self, network: Any) -> None:
        super().__init__({})
        self.network = network

    def net(self, *args: Any, **named: Any) -> Any:
        return self.network

    net_of_shape = net


def vector(*parts: float) -> torch.Tensor:
    return torch.tensor(parts, dtype=torch.float32).view(1, 3, 1, 1, 1)


def test_a_vector_is_turned_around_its_axis_and_kept_where_there_is_none() -> None:
    turned = rotated(vector(1, 0, 0), vector(0, 0, 1), torch.full((1, 1, 1, 1, 1), math.pi / 2))
    assert torch.allclose(turned, vector(0, 1, 0), atol=1e-6)
    half = torch.full((1, 1, 1, 1, 1), math.pi)
    assert torch.allclose(rotated(vector(1, 0, 0), vector(0, 0, 0), half), vector(1, 0, 0))


def test_a_normal_that_looks_away_just_faces_the_camera_afterwards_and_another_stays() -> None:
    ray = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    away, towards = (torch.tensor(one).view(1, 3, 1, 1) for one in ((0.6, 0.0, -0.8), (0.6, 0.0, 0.8)))
    cosine = float((facing(away, ray) * ray).sum())
    assert 0 < cosine < 0.02
    assert torch.allclose(facing(towards, ray), towards, atol=1e-6)


def test_a_view_of_90_degrees_sees_as_far_to_the_side_as_ahead() -> None:
    camera = Camera((64.0, 64.0), (64.0, 32.0))
    for step in (8, 16):
        slopes = View.of(torch.zeros(1, 3, 64, 128), camera, step).slopes()
        assert slopes.shape == (1, 2, 64 // step, 128 // step)
        edge = 1 - step / 128
        assert slopes[0, 0, 0, -1] == pytest.approx(edge) and slopes[0, 0, 0, 0] == pytest.approx(-edge)
        assert slopes[0, 1, -1, 0] == pytest.approx(0.5 - step / 128)


def test_the_sliders_reach_the_network_and_the_map_is_cut_to_the_picture_that_was_sent() -> None:
    told: list[tuple[Camera, int]] = []

    def network(pixels: torch.Tensor, camera: Camera, rounds: int) -> torch.Tensor:
        told.append((camera, rounds))
        down = torch.linspace(-1, 1, pixels.shape[2])[None, None, :, None]
        return down.expand(1, 3, *pixels.shape[2:])

    image = np.zeros((200, 321, 3), np.uint8)
    made = dsine.normals(FakeBench(network), image, 300, 90.0, 7)
    # 200 x 321 px are padded to 224 x 352 px, half of it before: 12 and 15 px; the network sees 320 px.
    assert told == [(Camera((pytest.approx(160.5),) * 2, (160.5 + 15, 100 + 12)), 7)]
    assert made.shape == (200, 321, 3) and made[0, 0, 0] == int((12 / 319) * 255)
    large = np.zeros((512, 640, 3), np.uint8)
    assert dsine.normals(FakeBench(network), large, 256, 60.0, 1).shape == (256, 320, 3)
    dsine.normals(FakeBench(network), image, 64, 0.0, 1)
    assert told[-1][0].focal == (math.inf, math.inf)


def test_zoes_network_sees_the_form_of_the_picture_in_multiples_of_32_px() -> None:
    assert zoe._size(384, 512) == (384, 512)
    assert zoe._size(768, 768) == (512, 512)  # 512 / 768 changes less than 384 / 768
    assert zoe._size(320, 512) == (320, 512)
    assert zoe._size(100, 1000) == (64, 512)


def test_zoe_draws_near_white_whichever_way_the_network_sees_the_picture() -> None:
    seen: list[torch.Size] = []

    def network(pixels: torch.Tensor) -> Any:
        seen.append(pixels.shape)
        return SimpleNamespace(predicted_depth=(pixels[:, 0] + 1) / 2 * 10)

    ramp = np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (192, 1, 3))
    made = zoe.depth(FakeBench(network), ramp)
    assert made.shape == (192, 256) and len(seen) == 2 and seen[0] == seen[1]
    assert (made[:, :4] == 255).all() and (made[:, -38:] == 0).all()  # nearer than 2 %, farther than 85 %
    middle = made[96].astype(int)
    assert (np.diff(middle) <= 0).all() and abs(middle[111] - 127) < 6
