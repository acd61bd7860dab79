"""Preprocessors: a photograph in, the control map a ControlNet was trained on out.

Arrays are uint8 with shape (height, width, 3), or (…, 4) for inpainting, where the fourth channel
is the mask. What each computes follows sd-webui-controlnet, including its use of BGR conversions
on RGB pixels (recolor), because the same request is to give the same map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sd_cloud.engines.diffusion.preprocess.lines import Pixels, scribble
from sd_cloud.engines.diffusion.preprocess.module import Module
from sd_cloud.engines.diffusion.preprocess.table import (
    EMBEDDING_FILES,
    NETWORK_FILES,
    REFUSED,
    weight_free_names,
)
from sd_cloud.errors import NotImplementedHere
from sd_cloud.settings import Settings

PAD_PX = 64  # detectors see sides that are multiples of this
NOISE_CELL_PX = 256


@dataclass(frozen=True)
class Detection:
    """What a preprocessor is given beside the image. ``seed`` decides what is random in it."""

    resolution: float = 512
    a: float = 0.0
    b: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Detected:
    """A control map, and of a preprocessor that looks for people what it saw, in OpenPose's JSON form."""

    map: Pixels
    pose: Mapping[str, Any] | None = None


def detect(
    module: Module, image: Pixels, detection: Detection, settings: Settings, *, field: str = "module"
) -> Pixels:
    """The control map of ``image``; its size is the preprocessor's affair. Raises what `detected` does."""
    return detected(module, image, detection, settings, field=field).map


def check_available(module: Module, settings: Settings, *, field: str) -> None:
    """Raises NotImplementedHere, naming the weights, for a network that is not here."""
    if module.name not in _PLAIN:
        weights_files(module, settings, field=field)


def detected(
    module: Module, image: Pixels, detection: Detection, settings: Settings, *, field: str = "module"
) -> Detected:
    """The control map of ``image``, and what else was seen.

    Raises NotImplementedHere, naming the weights, for one that needs a network that is not here.
    """
    plain = _PLAIN.get(module.name)
    if plain is not None:
        return Detected(np.ascontiguousarray(plain(image, detection)))
    files = weights_files(module, settings, field=field)
    from sd_cloud.engines.diffusion.placement import placement_for
    from sd_cloud.engines.diffusion.preprocess.loading import Bench
    from sd_cloud.engines.diffusion.preprocess.networks import AS_SENT, NETWORKS

    with Bench(files, placement_for(settings.precision).device, field) as bench:
        if module.name in AS_SENT:
            return _seen(AS_SENT[module.name](bench, image, detection))
        padded, size = resized(rgb(image), detection.resolution)
        seen = _seen(NETWORKS[module.name](bench, padded, detection))
    made = cut(seen.map, size)
    return replace(seen, map=np.ascontiguousarray(rgb(scribble(made) if "scribble" in module.name else made)))


def _seen(found: Pixels | Detected) -> Detected:
    return found if isinstance(found, Detected) else Detected(np.ascontiguousarray(found))


def weights_files(module: Module, settings: Settings, *, field: str = "module") -> dict[str, Path]:
    """Where each weights file of a preprocessor is.

    Raises NotImplementedHere, naming the preprocessor, and the file and folder or what it lacks else.
    """
    names = NETWORK_FILES.get(module.name, EMBEDDING_FILES.get(module.name))
    if names is None:
        why = REFUSED.get(module.name, "which is for a network that this service does not build")
        fact = f"needs {module.weights}, {why}"
        raise NotImplementedHere(f"the preprocessor {_both_names(module)} {fact}; {_instead()}", field=field)
    found = {name: path for name in names if (path := _weights_file(name, settings)) is not None}
    missing = [name for name in names if name not in found]
    if missing:
        folder = settings.folders.annotators[0]
        raise NotImplementedHere(
            f"the preprocessor {_both_names(module)} needs {' and '.join(missing)}, not found in {folder}; "
            f"{_instead()}",
            field=field,
        )
    return found


def _weights_file(name: str, settings: Settings) -> Path | None:
    """In a folder of preprocessors' weights as the extension has them, or among the ControlNets."""
    places = [folder / name for folder in settings.folders.annotators]
    places += [folder / Path(name).name for folder in settings.folders.controlnets]
    return next((place for place in places if place.is_file()), None)


def _both_names(module: Module) -> str:
    return repr(module.name) if module.shown == module.name else f"{module.name!r} ({module.shown})"


def _instead() -> str:
    return f"without weights there are: {', '.join(weight_free_names())}"


def rgb(image: NDArray[Any]) -> Pixels:
    """Three channels: grey is repeated, transparency laid over white."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2).astype(np.uint8)
    if image.shape[2] == 4:
        alpha = image[:, :, 3:].astype(np.float32) / 255.0
        over = image[:, :, :3].astype(np.float32) * alpha + 255.0 * (1.0 - alpha)
        return np.asarray(over.clip(0, 255), np.uint8)
    return np.asarray(image, np.uint8)


def resized(image: NDArray[Any], resolution: float) -> tuple[NDArray[Any], tuple[int, int]]:
    """The shorter side brought to ``resolution`` px, then padded by its edge to multiples of 64.

    And the size (height, width) without what was padded.
    """
    height, width = image.shape[:2]
    factor = float(resolution) / min(height, width)
    size = (int(np.round(height * factor)), int(np.round(width * factor)))
    how = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    scaled = cv2.resize(image, (size[1], size[0]), interpolation=how)
    padding = [(0, -size[0] % PAD_PX), (0, -size[1] % PAD_PX), (0, 0)]
    return np.pad(scaled, padding, mode="edge"), size


def cut(image: NDArray[Any], size: tuple[int, int]) -> Pixels:
    return np.ascontiguousarray(image[: size[0], : size[1]])


def _sized(image: Pixels, detection: Detection) -> Pixels:
    padded, size = resized(rgb(image), detection.resolution)
    return cut(padded, size)


def _none(image: Pixels, detection: Detection) -> Pixels:
    return image


def _canny(image: Pixels, detection: Detection) -> Pixels:
    padded, size = resized(rgb(image), detection.resolution)
    return rgb(cut(cv2.Canny(padded, int(detection.a), int(detection.b)), size))


def _invert(image: Pixels, detection: Detection) -> Pixels:
    return (255 - rgb(image)).astype(np.uint8)


def _blur(image: Pixels, detection: Detection) -> Pixels:
    return cv2.GaussianBlur(_sized(image, detection), (0, 0), float(detection.a)).astype(np.uint8)


def _xdog(image: Pixels, detection: Detection) -> Pixels:
    """Extended difference of Gaussians (Winnemöller 2011) with sigmas 0.5 and 5."""
    padded, size = resized(rgb(image), detection.resolution)
    pixels = padded.astype(np.float32)
    fine, coarse = cv2.GaussianBlur(pixels, (0, 0), 0.5), cv2.GaussianBlur(pixels, (0, 0), 5.0)
    difference = (255 - np.min(coarse - fine, axis=2)).clip(0, 255).astype(np.uint8)
    drawn = np.zeros_like(padded)
    drawn[2 * (255 - difference) > detection.a] = 255
    return cut(drawn, size)


def _lineart_standard(image: Pixels, detection: Detection) -> Pixels:
    padded, size = resized(rgb(image), detection.resolution)
    return cut(lineart_standard(padded), size)


def lineart_standard(image: Pixels) -> Pixels:
    """What is darker than its surroundings, at the image's size."""
    pixels = image.astype(np.float32)
    darker = np.min(cv2.GaussianBlur(pixels, (0, 0), 6.0) - pixels, axis=2).clip(0, 255)
    strong = darker[darker > 8]
    darker *= 127 / max(16.0, float(np.median(strong)) if strong.size else 16.0)
    return rgb(darker.clip(0, 255).astype(np.uint8))


def _threshold(image: Pixels, detection: Detection) -> Pixels:
    padded, size = resized(rgb(image), detection.resolution)
    drawn = np.zeros_like(padded)
    drawn[np.min(padded, axis=2) > detection.a] = 255
    return cut(drawn, size)


def _tile_resample(image: Pixels, detection: Detection) -> Pixels:
    pixels = rgb(image)
    if detection.a < 1.1:
        return pixels
    size = (max(int(pixels.shape[1] / detection.a), 1), max(int(pixels.shape[0] / detection.a), 1))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _tile_colorfix(image: Pixels, detection: Detection) -> Pixels:
    return rgb(image)


def _recolor(conversion: int, channel: int) -> Callable[[Pixels, Detection], Pixels]:
    def grey(image: Pixels, detection: Detection) -> Pixels:
        plane = cv2.cvtColor(rgb(image), conversion)[:, :, channel].astype(np.float32) / 255.0
        return rgb((plane**detection.a * 255.0).clip(0, 255).astype(np.uint8))

    return grey


def _color_grid(image: Pixels, detection: Detection) -> Pixels:
    """One colour for each 64 x 64 px cell (T2I-Adapter's palette map)."""
    pixels = rgb(image)
    height, width = pixels.shape[:2]
    factor = detection.resolution / min(height, width)
    size = (max(round(width * factor), PAD_PX), max(round(height * factor), PAD_PX))
    scaled = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    cells = cv2.resize(scaled, (size[0] // PAD_PX, size[1] // PAD_PX), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)


def _shuffle(image: Pixels, detection: Detection) -> Pixels:
    """The image's content moved about along a smooth random flow (ControlNet 1.1 shuffle)."""
    pixels = _sized(image, detection)
    height, width = pixels.shape[:2]
    random = np.random.RandomState(detection.seed)
    flow = [_noise_disk(random, height, width) * (side - 1.0) for side in (width, height)]
    across, down = (plane.astype(np.float32) for plane in flow)
    return np.asarray(cv2.remap(pixels, across, down, cv2.INTER_LINEAR), np.uint8)


def _noise_disk(random: np.random.RandomState, height: int, width: int) -> NDArray[np.float64]:
    """Smooth noise between 0 and 1: one value per 256 px cell, enlarged by cubic interpolation."""
    cells = random.uniform(0, 1, (height // NOISE_CELL_PX + 2, width // NOISE_CELL_PX + 2, 1))
    size = (width + 2 * NOISE_CELL_PX, height + 2 * NOISE_CELL_PX)
    noise: NDArray[np.float64] = np.asarray(
        cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC), np.float64
    )
    noise = noise.reshape(size[1], size[0])[NOISE_CELL_PX:, NOISE_CELL_PX:][:height, :width]
    noise = noise - noise.min()
    return noise / max(float(noise.max()), 1e-12)


_PLAIN: Mapping[str, Callable[[Pixels, Detection], Pixels]] = {
    "none": _none,
    "canny": _canny,
    "invert": _invert,
    "blur_gaussian": _blur,
    "scribble_xdog": _xdog,
    "lineart_standard": _lineart_standard,
    "threshold": _threshold,
    "tile_resample": _tile_resample,
    "tile_colorfix": _tile_colorfix,
    "tile_colorfix+sharp": _tile_colorfix,
    "recolor_luminance": _recolor(cv2.COLOR_BGR2LAB, 0),
    "recolor_intensity": _recolor(cv2.COLOR_BGR2HSV, 2),
    "color": _color_grid,
    "shuffle": _shuffle,
    "reference_only": _none,
    "reference_adain": _none,
    "reference_adain+attn": _none,
    "inpaint": _none,
    "inpaint_only": _none,
}
