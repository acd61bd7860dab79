"""HyperTile: self-attention within tiles, as the webui's options and random numbers have it."""

from __future__ import annotations

from typing import Any

import pytest

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")

from sd_cloud.engines.diffusion.hypertile import HyperTile, _UNetLayer, _VaeLayer, divisions, sides  # noqa: E402


def tiling(**options: Any) -> HyperTile:
    return HyperTile(Options(Job("txt2img", {"override_settings": options})))


@pytest.mark.parametrize(
    ("side", "least", "choices", "counts"),
    [
        (64, 16, 3, (4, 2, 1)),
        (64, 16, 1, (4,)),
        (64, 16, 0, (4,)),
        (48, 16, 8, (3, 2, 1)),
        (32, 64, 3, (1,)),
        (37, 16, 3, (1,)),
    ],
)
def test_a_side_divides_evenly_into_tiles_of_the_least_size_first(
    side: int, least: int, choices: int, counts: tuple[int, ...]
) -> None:
    assert divisions(side, least, choices) == counts


@pytest.mark.parametrize(
    ("places", "aspect", "found"),
    [
        (32 * 32, 1.0, (32, 32)),
        (64 * 32, 2.0, (64, 32)),
        (40 * 33, 320 / 264, (40, 33)),
        (35, 1.0, (7, 5)),  # neither rounded side divides it: the pair nearest in shape
        (13, 1.0, (13, 1)),
        (1, 1.0, (1, 1)),
        (2, 16.0, (2, 1)),  # the shorter side rounds to nothing
    ],
)
def test_the_sides_of_so_many_places_come_from_the_pictures_shape(
    places: int, aspect: float, found: tuple[int, int]
) -> None:
    assert sides(places, aspect) == found
    assert found[0] * found[1] == places


def test_places_come_back_where_they_were() -> None:
    tiles = tiling(hypertile_enable_unet=True, hypertile_enable_vae=True, hypertile_swap_size_vae=1)
    tiles.begin(3, 512, 256, {})
    tokens = torch.arange(2 * 64 * 32 * 3.0).reshape(2, 64 * 32, 3)
    latents = torch.arange(2 * 3 * 64 * 32.0).reshape(2, 3, 32, 64)
    for layer, x in ((_UNetLayer(tiles, 0, False), tokens), (_VaeLayer(tiles), latents)):
        split = layer.attends(torch.nn.Identity(), (x,))
        assert split is not None and split[0].shape[0] > x.shape[0]
        joined = layer.attended(torch.nn.Identity(), (), split[0])
        assert joined is not None and torch.equal(joined, x)


def test_the_first_seed_chooses_and_a_hires_pass_chooses_from_its_beginning_again() -> None:
    def counts(tiles: HyperTile) -> list[int]:
        return [tiles.count(512, 16, 8) for _ in range(12)]

    tiles = tiling(hypertile_enable_unet=True)
    tiles.begin(5, 512, 512, {})
    first = counts(tiles)
    tiles.begin_second_pass(5, 1024, 1024, {})
    assert counts(tiles) == first and len(set(first)) > 1
    tiles.begin(6, 512, 512, {})
    assert counts(tiles) != first


def test_a_batchs_first_pass_tiles_as_the_hires_pass_before_it_and_not_in_a_model_built_anew() -> None:
    tiles = tiling(hypertile_enable_unet_secondpass=True)
    tiles.begin(1, 256, 256, {})
    assert tiles.tiles_of("unet", 0) is None
    tiles.begin_second_pass(1, 768, 512, {})
    left = tiles.tiles_of("unet", 0)
    assert left is not None and (left.pixels, left.aspect) == (256, 1.5)
    tiles.forget()
    assert tiles.tiles_of("unet", 0) is None


def test_only_layers_down_to_the_depth_tile_and_previews_leave_them_alone() -> None:
    tiles = tiling(hypertile_enable_unet=True, hypertile_max_depth_unet=1)
    tiles.begin(1, 512, 512, {})
    assert [tiles.tiles_of("unet", depth) is not None for depth in range(4)] == [True, True, False, False]
    with tiles.at_rest():
        assert tiles.tiles_of("unet", 0) is None


def test_the_infotext_says_what_is_on_and_what_is_not_the_default() -> None:
    marks: dict[str, Any] = {}
    tiles = tiling(
        hypertile_enable_unet_secondpass=True, hypertile_enable_vae=True, hypertile_max_tile_vae=256
    )
    tiles.begin(1, 512, 512, marks)
    assert marks == {
        "Hypertile VAE": True,
        "Hypertile VAE max depth": None,
        "Hypertile VAE max tile size": 256,
        "Hypertile VAE swap size": None,
    }
    tiles.begin_second_pass(1, 1024, 1024, marks)
    assert marks["Hypertile U-Net second pass"] is True
    assert "Hypertile U-Net" not in marks and marks["Hypertile U-Net max depth"] is None


def test_tiles_do_not_go_with_attention_to_another_picture() -> None:
    tiles = tiling(hypertile_enable_unet=True, hypertile_swap_size_unet=1)
    tiles.begin(1, 512, 512, {})
    with pytest.raises(BadRequest, match="hypertile_enable_unet"):
        _UNetLayer(tiles, 0, True).attends(torch.nn.Identity(), (torch.zeros(1, 64 * 64, 4),))


@pytest.mark.engine
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout")
def test_a_job_tiles_and_the_next_one_does_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    from sd_cloud.engines.diffusion.engine import create

    worker: Any = create(install_models(tmp_path_factory.mktemp("data")))

    def made(**options: Any) -> Any:
        payload = {"prompt": "a cat", "steps": 1, "width": 256, "height": 64, "seed": 7}
        job = Job("txt2img", {**payload, "override_settings": options}, checkpoint="tiny-a")
        return worker.run(job, lambda progress: None, Control()).pictures[0]

    one = {"hypertile_swap_size_unet": 1, "hypertile_max_tile_unet": 128}
    before, tiled, after = made(), made(hypertile_enable_unet=True, **one), made()
    assert decibels(before.image, tiled.image) < 60
    assert decibels(before.image, after.image) == float("inf")
    assert "Hypertile U-Net: True, Hypertile U-Net max tile size: 128" in tiled.infotext
