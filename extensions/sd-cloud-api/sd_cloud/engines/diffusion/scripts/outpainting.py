"""Outpainting mk2: the canvas grown side by side, what is new filled with noise shaped like the picture.

The shaped noise is that of parlance-zz/g-diffuser-bot: random numbers given the picture's spectrum
and its distribution of colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sd_cloud.engines.diffusion.scripts.forms import SIDES, Side
from sd_cloud.engines.diffusion.scripts.run import Session, encoded, image_of
from sd_cloud.errors import BadRequest
from sd_cloud.job import Outcome, Picture

Floats = NDArray[np.float64]
ORIGINAL = 1
MULTIPLE_PX = 64
BLUR_FACTOR = 4


@dataclass(frozen=True)
class Growth:
    """How far a picture grows to one side, and how wide its mask's edge is (pixels)."""

    side: Side
    pixels: int
    blur_x: int
    blur_y: int

    @property
    def sideways(self) -> bool:
        return self.side in ("left", "right")

    def kept(self, size: tuple[int, int], mask: tuple[int, int], blurs: int) -> tuple[int, int, int, int]:
        """The rectangle of the old picture, ``blurs`` edge widths in from where it is grown."""
        x, y = self.pixels + self.blur_x * blurs, self.pixels + self.blur_y * blurs
        return (
            x if self.side == "left" else 0,
            y if self.side == "up" else 0,
            mask[0] - x if self.side == "right" else size[0],
            mask[1] - y if self.side == "down" else size[1],
        )


def outpainting(session: Session) -> Outcome:
    """The pictures grown to every side asked for, batch after batch."""
    values = session.values
    image = session.source()
    blur = int(values["mask_blur"])
    growths = plan_growths(image.size, int(values["pixels"]), list(values["direction"]), blur)
    if not growths:
        raise BadRequest("direction: the picture grows to no side", field="script_args[3]")
    count, batches = session.whole("batch_size", 1), session.whole("n_iter", 1)
    session.count = batches * len(growths)
    made: list[Picture] = []
    for _ in range(batches):
        images = [image.convert("RGB")] * count
        text, seed = "", None
        for growth in growths:
            if session.stopped:
                break
            images = _grown(
                session, images, growth, float(values["noise_q"]), float(values["color_variation"])
            )
            info = session.outcomes[0].info
            text, seed = str(info["infotexts"][0]), info["seed"]
        if session.outcomes:
            made += [Picture(one, seed=seed, infotext=text) for one in images]
        if session.stopped:
            break
    alone = len(made) < 2 and session.options.flag("grid_only_if_multiple")
    if not made or alone or not session.options.flag("return_grid"):
        return session.outcome(made)
    return session.outcome(made, grid=session.sheet([image_of(one) for one in made]))


def plan_growths(size: tuple[int, int], pixels: int, directions: list[Side], blur: int) -> list[Growth]:
    """How far to each side: as asked, and then on to the next multiple of 64 px of the whole."""
    across = [side for side in ("left", "right") if side in directions]
    along = [side for side in ("up", "down") if side in directions]
    shares: dict[str, int] = {}
    for sides, length in ((across, size[0]), (along, size[1])):
        grown = math.ceil((length + pixels * len(sides)) / MULTIPLE_PX) * MULTIPLE_PX - length
        if len(sides) == 2:
            shares[sides[0]] = pixels * grown // (2 * pixels)
            shares[sides[1]] = grown - shares[sides[0]]
        elif sides:
            shares[sides[0]] = grown
    blur_x, blur_y = (blur if across else 0), (blur if along else 0)
    return [Growth(side, shares[side], blur_x, blur_y) for side in SIDES if shares.get(side)]


def _grown(
    session: Session, images: list[Image.Image], growth: Growth, noise_q: float, color_variation: float
) -> list[Image.Image]:
    width, height = session.whole("width", 512), session.whole("height", 512)
    old = images[0].size
    size = (old[0] + growth.pixels, old[1]) if growth.sideways else (old[0], old[1] + growth.pixels)
    canvas = tuple(math.ceil(side / MULTIPLE_PX) * MULTIPLE_PX for side in size)
    whole = (canvas[0], canvas[1])
    mask = _mask(whole, growth.kept(size, whole, 1))
    filled = [_filled(one, mask, growth, noise_q, color_variation) for one in images]
    process = (min(width, size[0]), whole[1]) if growth.sideways else (whole[0], min(height, size[1]))
    corner = (
        0 if growth.side == "left" else whole[0] - process[0],
        0 if growth.side == "up" else whole[1] - process[1],
    )
    crop = (*corner, corner[0] + process[0], corner[1] + process[1])
    latent_mask = _mask(process, growth.kept(size, process, 2))
    made = session.run(
        {},
        init_images=[encoded(one.crop(crop)) for one in filled],
        batch_size=len(images),
        width=process[0],
        height=process[1],
        mask=encoded(mask.crop(crop)),
        latent_mask=encoded(latent_mask),
        mask_blur=None,
        mask_blur_x=growth.blur_x * BLUR_FACTOR,
        mask_blur_y=growth.blur_y * BLUR_FACTOR,
        inpaint_full_res=False,
        inpainting_fill=ORIGINAL,
    )
    for canvas_image, picture in zip(filled, made, strict=False):
        canvas_image.paste(image_of(picture), corner)
    return [one.crop((0, 0, *size)) for one in filled]


def _mask(size: tuple[int, int], kept: tuple[int, int, int, int]) -> Image.Image:
    """White to be painted, black (edges included) to be kept."""
    mask = Image.new("RGB", size, "white")
    if kept[2] >= kept[0] and kept[3] >= kept[1]:
        ImageDraw.Draw(mask).rectangle(kept, fill="black")
    return mask


def _filled(
    image: Image.Image, mask: Image.Image, growth: Growth, noise_q: float, color_variation: float
) -> Image.Image:
    """The picture on the larger canvas, with shaped noise where it is new."""
    canvas = Image.new("RGB", mask.size)
    canvas.paste(
        image, (growth.pixels if growth.side == "left" else 0, growth.pixels if growth.side == "up" else 0)
    )
    noised = shaped_noise(
        np.asarray(canvas, np.float64) / 255.0, np.asarray(mask, np.float64) / 255.0, noise_q, color_variation
    )
    return Image.fromarray((noised * 255.0).clip(0, 255).astype(np.uint8))


def shaped_noise(image: Floats, mask: Floats, noise_q: float = 1.0, color_variation: float = 0.05) -> Floats:
    """The picture with noise like itself where the mask is white; [H, W, 3] in 0..1.

    ``noise_q`` is the exponent on the spectrum, ``color_variation`` how colourful the noise begins.
    The random numbers are always the same: the result follows from the picture.
    """
    grey_mask = mask.sum(axis=2) / 3.0
    masked, known = grey_mask > 1e-6, grey_mask < 1e-3
    if not masked.any() or not known.any():
        return image
    seen = image * (1.0 - grey_mask[:, :, None])
    seen = seen / max(float(seen.max()), 1e-12) + image.mean() * mask
    spectrum = _to_spectrum(seen)
    strength = np.abs(spectrum)
    phase = np.divide(spectrum, strength, out=np.ones_like(spectrum), where=strength > 0)

    noise = np.random.default_rng(0).random(image.shape)
    noise = noise * color_variation + (1.0 - color_variation) * (noise.sum(axis=2, keepdims=True) / 3.0)
    noise = np.real(_from_spectrum(_to_spectrum(noise) * _window(*image.shape[:2])[:, :, None]))
    shaped = np.abs(_to_spectrum(noise)) ** 2 * strength**noise_q * phase
    made = np.real(_from_spectrum(shaped))
    made = made - made.min()
    made = made / max(float(made.max()), 1e-12)
    for channel in range(image.shape[2]):
        made[masked, channel] = matched(made[masked, channel], image[known, channel])
    return np.asarray((image * (1.0 - mask) + made * mask).clip(0.0, 1.0))


def _to_spectrum(pixels: Floats) -> NDArray[np.complex128]:
    turned = np.fft.fft2(np.fft.fftshift(pixels, axes=(0, 1)), axes=(0, 1), norm="ortho")
    return np.asarray(np.fft.ifftshift(turned, axes=(0, 1)))


def _from_spectrum(spectrum: NDArray[Any]) -> NDArray[np.complex128]:
    turned = np.fft.ifft2(np.fft.fftshift(spectrum, axes=(0, 1)), axes=(0, 1), norm="ortho")
    return np.asarray(np.fft.ifftshift(turned, axes=(0, 1)))


def _window(rows: int, columns: int) -> Floats:
    """1 in the middle of the spectrum, falling off as ``1 / ((x² + 1) (y² + 1))``."""
    shorter = min(rows, columns)
    y, x = ((np.arange(side) / side * 2.0 - 1.0) * (side / shorter) for side in (rows, columns))
    return np.asarray(1.0 / ((y[:, None] ** 2 + 1.0) * (x[None] ** 2 + 1.0)))


def matched(values: Floats, like: Floats) -> Floats:
    """Values mapped so that they are distributed as ``like`` (histogram specification)."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    levels, level_counts = np.unique(like, return_counts=True)
    shares = np.cumsum(counts) / values.size
    level_shares = np.cumsum(level_counts) / like.size
    return np.asarray(np.interp(shares, level_shares, levels)[places])
