"""Find exposed regions in a picture and blur them.

The detector is NudeNet 3 (320n, an ONNX model that ships inside the ``nudenet`` package), run on
the CPU at 320 x 320, about 30 ms a picture, between the engine and the saving: never in an engine's
slot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageFilter

from sd_cloud.errors import NotImplementedHere
from sd_cloud.job import Outcome, Picture

#: What is blurred, in NudeNet's words.
EXPOSED = (
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_EXPOSED",
)
#: Detections less certain than this are left alone (NudeNet's own example threshold is 0.2).
MIN_SCORE = 0.3
#: How far a blur reaches beyond the box, as a share of its sides: the boxes are tight.
MARGIN = 0.15


@dataclass(frozen=True)
class Region:
    """A detection: its class, 0..1 score, and box (left, top, right, bottom) in pixels."""

    label: str
    score: float
    box: tuple[int, int, int, int]


Detector = Callable[[Image.Image], Sequence[Region]]


class Censor:
    """Blurs what a detector finds. Raises NotImplementedHere when NudeNet is not installed.

    ``detect`` is NudeNet's unless another is given; ``labels`` are the classes that are blurred.
    Safe to call from several threads.
    """

    def __init__(self, detect: Detector | None = None, *, labels: Sequence[str] = EXPOSED) -> None:
        self._detect = detect or nudenet()
        self._labels = labels

    def check(self, outcome: Outcome) -> Outcome:
        """The outcome with exposed regions blurred.

        ``info["nsfw_censored"]`` has one truth value for each picture of the outcome, in its order.
        """
        pictures = tuple(self._checked(picture) for picture in outcome.pictures)
        changed = [new is not old for new, old in zip(pictures, outcome.pictures, strict=True)]
        return replace(outcome, pictures=pictures, info={**outcome.info, "nsfw_censored": changed})

    def clean(self, image: Image.Image) -> Image.Image:
        """The image itself when nothing was found, else a blurred copy."""
        regions = [r for r in self._detect(image) if r.label in self._labels and r.score >= MIN_SCORE]
        return blurred(image, regions) if regions else image

    def _checked(self, picture: Picture) -> Picture:
        if picture.image is None:
            return picture
        image = self.clean(picture.image)
        return picture if image is picture.image else replace(picture, image=image)


def blurred(image: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """A copy in which the regions, a margin around them included, can't be made out."""
    copy = image.copy()
    for region in regions:
        left, top, right, bottom = region.box
        across, down = int((right - left) * MARGIN), int((bottom - top) * MARGIN)
        box = (
            max(left - across, 0),
            max(top - down, 0),
            min(right + across, image.width),
            min(bottom + down, image.height),
        )
        part = copy.crop(box)
        # Down to a handful of pixels first: a blur alone can be undone.
        coarse = part.resize((max(part.width // 24, 2), max(part.height // 24, 2)), Image.Resampling.BOX)
        smooth = coarse.resize(part.size, Image.Resampling.BICUBIC)
        copy.paste(smooth.filter(ImageFilter.GaussianBlur(max(part.size) / 16)), box)
    return copy


def nudenet() -> Detector:
    """NudeNet as a `Detector`. Raises NotImplementedHere when the package is missing."""
    try:
        import numpy
        from nudenet import NudeDetector
    except ImportError as error:
        raise NotImplementedHere(
            f"--enable-nsfw-censor needs the nudenet package ({error}); pip install nudenet"
        ) from error
    detector = NudeDetector()
    one_at_a_time = threading.Lock()

    def detect(image: Image.Image) -> Sequence[Region]:
        pixels = numpy.asarray(image.convert("RGBA"))
        with one_at_a_time:
            found: list[dict[str, Any]] = detector.detect(pixels)
        return [Region(f["class"], float(f["score"]), _box(*f["box"])) for f in found]

    return detect


def _box(x: int, y: int, width: int, height: int) -> tuple[int, int, int, int]:
    return (x, y, x + width, y + height)
