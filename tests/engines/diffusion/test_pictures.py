"""Resizing, masks, overlays, colours and the grid."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sd_cloud.engines.diffusion import pictures
from sd_cloud.errors import BadRequest


def halves(left: str, right: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("RGB", size, left)
    image.paste(Image.new("RGB", (size[0] // 2, size[1]), right), (size[0] // 2, 0))
    return image


def test_stretching_keeps_everything() -> None:
    made = pictures.resize(0, halves("red", "blue", (100, 40)), 50, 50)
    assert made.size == (50, 50)
    assert (made.getpixel((2, 25)), made.getpixel((47, 25))) == ((255, 0, 0), (0, 0, 255))


def test_filling_cuts_what_is_too_wide() -> None:
    stripes = Image.new("RGB", (120, 40), "red")
    stripes.paste("blue", (40, 0, 80, 40))
    assert pictures.resize(1, stripes, 40, 40).getcolors(4096) == [(1600, (0, 0, 255))]


@pytest.mark.parametrize("size", [(80, 40), (40, 80)])
def test_fitting_continues_the_edges_outward(size: tuple[int, int]) -> None:
    made = pictures.resize(2, Image.new("RGB", size, "teal"), 60, 60)
    assert made.getcolors(4096) == [(3600, (0, 128, 128))]


def test_a_mask_is_the_alpha_where_there_is_one() -> None:
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    image.putpixel((1, 1), (0, 0, 0, 129))
    mask = pictures.binary_mask(image, rounded=True)
    assert mask.mode == "L"
    assert mask.getpixel((1, 1)) == 255 and mask.getpixel((0, 0)) == 0
    assert pictures.binary_mask(image, rounded=False).getpixel((1, 1)) == 129


def test_blurring_spreads_a_mask_in_the_direction_asked_for() -> None:
    mask = Image.new("L", (41, 41), 0)
    mask.paste(255, (20, 0, 41, 41))
    across = np.asarray(pictures.blur_mask(mask, 4, 0))
    assert 0 < across[20, 17] < 128 < across[20, 23] < 255
    assert np.array_equal(across[0], across[40])
    assert np.array_equal(np.asarray(pictures.blur_mask(mask, 0, 4)), np.asarray(mask))


def test_the_region_around_a_mask_has_its_padding_and_stays_inside() -> None:
    mask = Image.new("L", (100, 80), 0)
    mask.paste(255, (10, 20, 30, 40))
    assert pictures.masked_region(mask, 5) == (5, 15, 35, 45)
    assert pictures.masked_region(mask, 50) == (0, 0, 80, 80)
    assert pictures.masked_region(Image.new("L", (4, 4), 0), 5) is None


@pytest.mark.parametrize("box", [(0, 0, 10, 10), (90, 70, 100, 80), (40, 0, 60, 80), (0, 30, 100, 40)])
def test_a_region_grows_to_the_proportions_and_stays_inside(box: pictures.Box) -> None:
    x1, y1, x2, y2 = pictures.expand_region(box, 512, 512, 100, 80)
    assert 0 <= x1 <= box[0] and 0 <= y1 <= box[1] and box[2] <= x2 <= 100 and box[3] <= y2 <= 80
    assert abs((x2 - x1) - (y2 - y1)) <= 1 or (x2 - x1) == 100 or (y2 - y1) == 80


def test_filling_leaves_what_is_not_masked() -> None:
    image, mask = halves("red", "blue"), Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    filled = pictures.fill_masked(image, mask)
    assert filled.getpixel((10, 10)) == (255, 0, 0)
    assert filled.getpixel((60, 10))[0] > 200


def test_an_overlay_brings_back_what_was_not_masked() -> None:
    image, mask = halves("red", "blue"), Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    whole, made = pictures.put_back(
        Image.new("RGB", (64, 64), "lime"), None, pictures.overlay_of(image, mask)
    )
    assert (whole.getpixel((5, 5)), whole.getpixel((60, 5))) == ((255, 0, 0), (0, 255, 0))
    assert made.getcolors(1) == [(4096, (0, 255, 0))]


def test_a_part_made_larger_goes_back_to_its_place() -> None:
    overlay = Image.new("RGBA", (100, 50), (0, 0, 0, 0))
    whole, _ = pictures.put_back(Image.new("RGB", (64, 64), "lime"), (30, 10, 20, 20), overlay)
    assert whole.size == (100, 50)
    assert (whole.getpixel((40, 20)), whole.getpixel((60, 20))) == ((0, 255, 0), (0, 0, 0))


def test_matching_colours_to_itself_changes_next_to_nothing() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8))
    matched = pictures.match_colours(pictures.colour_target(image), image)
    difference = np.abs(np.asarray(matched).astype(int) - np.asarray(image).astype(int))
    assert difference.mean() < 3


def test_luminosity_of_one_and_colour_of_the_other() -> None:
    made = pictures.with_luminosity(Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "black"))
    assert made.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("count", "batch", "rows", "no_gaps", "size"),
    [
        (4, 2, -1, False, (20, 20)),
        (5, 1, -1, False, (30, 20)),
        (5, 1, -1, True, (50, 10)),
        (6, 2, 0, False, (30, 20)),
        (3, 1, 9, False, (10, 30)),
    ],
)
def test_a_grid_has_the_rows_asked_for(
    count: int, batch: int, rows: int, no_gaps: bool, size: tuple[int, int]
) -> None:
    images = [Image.new("RGB", (10, 10), "red")] * count
    assert pictures.grid(images, batch, rows=rows, no_gaps=no_gaps, background="#00ff00").size == size


def test_pictures_of_two_sizes_stand_in_the_middle_of_their_places() -> None:
    sheet = pictures.grid(
        [Image.new("RGB", (20, 20), "red"), Image.new("RGB", (10, 10), "blue")],
        1, rows=1, no_gaps=False, background="#00ff00",
    )  # fmt: skip
    assert sheet.getpixel((22, 2)) == (0, 255, 0) and sheet.getpixel((30, 10)) == (0, 0, 255)


@pytest.mark.parametrize("text", ["", "%%%", "aGVsbG8=", "data:image/png;base64,aGVsbG8="])
def test_what_is_no_picture_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(BadRequest, match="mask"):
        pictures.decode_picture(text, "mask")


def test_transparency_is_laid_on_the_background() -> None:
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert pictures.flatten(image, "#00ff00").getpixel((0, 0)) == (0, 255, 0)
