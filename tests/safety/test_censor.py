from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from sd_cloud.job import Outcome, Picture
from sd_cloud.safety import Censor, Region, blurred


def noise(size: tuple[int, int] = (200, 160)) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


def found(*regions: Region) -> Censor:
    def detect(image: Image.Image) -> Sequence[Region]:
        return regions

    return Censor(detect)


def contrast(image: Image.Image, box: tuple[int, int, int, int]) -> float:
    return float(ImageStat.Stat(image.convert("L").crop(box)).stddev[0])


def test_a_region_is_made_unrecognisable_and_the_rest_stays() -> None:
    image = noise()
    box = (60, 40, 140, 120)
    result = blurred(image, [Region("BUTTOCKS_EXPOSED", 0.9, box)])
    assert contrast(result, box) < contrast(image, box) / 10
    changed = ImageChops.difference(image, result).getbbox()
    assert changed is not None and changed[0] >= 48 and changed[3] <= 132


def test_a_region_at_the_edge_or_without_extent_is_no_trouble() -> None:
    for box in ((0, 0, 200, 160), (190, 150, 200, 160), (5, 5, 6, 6)):
        assert blurred(noise(), [Region("ANUS_EXPOSED", 0.9, box)]).size == (200, 160)


def test_the_outcome_says_which_picture_was_censored() -> None:
    plain, other = noise(), noise((64, 64))

    def detect(image: Image.Image) -> Sequence[Region]:
        return [Region("FEMALE_BREAST_EXPOSED", 0.8, (0, 0, 32, 32))] if image is other else []

    pictures = (Picture(plain, seed=1), Picture(other, seed=2), Picture(None, error="lost"))
    outcome = Censor(detect).check(Outcome(pictures, {"seed": 1}))
    assert outcome.info == {"seed": 1, "nsfw_censored": [False, True, False]}
    assert outcome.pictures[0].image is plain and outcome.pictures[1].image is not other
    assert outcome.pictures[1].seed == 2


@pytest.mark.parametrize(("label", "score"), [("FACE_FEMALE", 0.99), ("ANUS_EXPOSED", 0.1)])
def test_covered_parts_and_faint_guesses_are_left_alone(label: str, score: float) -> None:
    image = noise()
    assert found(Region(label, score, (10, 10, 90, 90))).clean(image) is image


@pytest.mark.filterwarnings("ignore")
def test_the_real_detector_finds_what_is_there_where_it_is() -> None:
    pytest.importorskip("nudenet", reason="the nudenet package is not installed")
    skimage = pytest.importorskip("skimage", reason="scikit-image brings the picture")
    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    image = Image.open(path).convert("RGB")
    assert Censor().clean(image) is image, "a portrait is nothing to hide"
    censored = Censor(labels=("FACE_FEMALE",)).clean(image)
    left, top, right, bottom = ImageChops.difference(image, censored).getbbox() or (0, 0, 0, 0)
    assert 120 < left < right < 320 and 40 < top < bottom < 230, "the face, and only the face"
