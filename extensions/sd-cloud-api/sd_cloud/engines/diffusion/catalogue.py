"""What is installed: model files by the names the webui gives them. Never imports torch.

Runs in the API process. It reads names, safetensors headers and the outline of pickles, no
weights; hashes appear once something has computed them (:mod:`.hashes`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sd_cloud.engines.base import Catalogue, Checkpoint, ModelFile
from sd_cloud.engines.diffusion.catalogue_outlines import (
    Outline,
    OutlineUnreadable,
    pickle_outline,
    safetensors_outline,
)
from sd_cloud.engines.diffusion.catalogue_samplers import SAMPLERS, SCHEDULERS
from sd_cloud.engines.diffusion.hashes import HashBook, legacy_hash
from sd_cloud.engines.diffusion.scripts.forms import FORMS
from sd_cloud.settings import ModelFolders, Settings

log = logging.getLogger(__name__)

CHECKPOINT_ENDINGS = (".ckpt", ".safetensors")
VAE_ENDINGS = (".ckpt", ".pt", ".safetensors")
LORA_ENDINGS = (".pt", ".ckpt", ".safetensors")
EMBEDDING_ENDINGS = (".bin", ".pt", ".safetensors")
CONTROLNET_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
UPSCALER_ENDINGS = (".pt", ".pth", ".safetensors")

PLAIN_UPSCALERS = ("None", "Lanczos", "Nearest")

PUBLISHED_NAMES = {
    "realesr-general-x4v3": ("R-ESRGAN General 4xV3", 4.0),
    "realesr-general-wdn-x4v3": ("R-ESRGAN General WDN 4xV3", 4.0),
    "realesr-animevideov3": ("R-ESRGAN AnimeVideo", 4.0),
    "RealESRGAN_x4plus": ("R-ESRGAN 4x+", 4.0),
    "RealESRGAN_x4plus_anime_6B": ("R-ESRGAN 4x+ Anime6B", 4.0),
    "RealESRGAN_x2plus": ("R-ESRGAN 2x+", 2.0),
    "DAT_x2": ("DAT x2", 2.0),
    "DAT_x3": ("DAT x3", 3.0),
    "DAT_x4": ("DAT x4", 4.0),
}
"""Names under which the webui offers these published files."""

_PUBLISHED = frozenset(name for name, _ in PUBLISHED_NAMES.values())

MODEL_NAMES = {"ESRGAN": "ESRGAN_4x", "ScuNET": "ScuNET GAN", "SwinIR": "SwinIR 4x"}
"""What the webui calls the model of every file of such a kind."""

LORA_METADATA_FIRST = (
    "ss_sd_model_name",
    "ss_resolution",
    "ss_clip_skip",
    "ss_num_train_images",
    "ss_tag_frequency",
)


def hash_book(settings: Settings) -> HashBook:
    """The remembered hashes of this service."""
    return HashBook(settings.state_dir / "hashes.json", compute=not settings.no_hashing)


def scan(settings: Settings) -> Catalogue:
    """List everything below the model folders, in the webui's order and under its names.

    A file that cannot be read is left out with a line in the log that says why. Where two folders
    hold the same name, the folder that comes first in the settings counts.
    """
    folders = settings.folders
    hashes = hash_book(settings)
    upscaling = upscalers(folders)
    return Catalogue(
        checkpoints=_checkpoints(folders.checkpoints, hashes, settings.ckpt),
        vaes=_vaes(folders.vaes, folders.checkpoints),
        loras=_loras(folders.loras),
        embeddings=_embeddings(folders.embeddings),
        hypernetworks=_hypernetworks(folders.hypernetworks),
        controlnets=_controlnets(folders.controlnets),
        upscalers=upscaling,
        samplers=SAMPLERS,
        schedulers=SCHEDULERS,
        scripts=tuple(form.info([one.name for one in upscaling]) for form in FORMS),
    )


def vae_beside(catalogue: Catalogue, checkpoint: Checkpoint) -> ModelFile | None:
    """The VAE that ``sd_vae = Automatic`` takes for a checkpoint: the first whose name begins with its."""
    stem = Path(checkpoint.filename).name.rsplit(".", 1)[0]
    return next((one for one in catalogue.vaes if one.name.startswith(stem)), None)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key with numbers by value: ``v2`` before ``v10``, upper and lower case as one."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"([0-9]+)", text)
    ]


def folders_below(top: Path) -> Iterator[tuple[Path, list[str], os.stat_result]]:
    """Every folder with the names of its files, links followed; a link to a folder around it is not."""
    around: dict[Path, frozenset[tuple[int, int]]] = {top: frozenset()}
    for root, folders, names in os.walk(top, followlinks=True):
        place = Path(root)
        try:
            status = place.stat()
        except OSError:  # gone since its name was read
            folders.clear()
            continue
        itself, outer = (status.st_dev, status.st_ino), around.pop(place)
        if itself in outer:
            folders.clear()
            continue
        around |= {place / name: outer | {itself} for name in folders}
        yield place, names, status


def files_below(folder: Path, endings: Iterable[str]) -> Iterator[Path]:
    """Files with these endings, links followed, in natural order; hidden folders and dead links left out."""
    wanted = set(endings)
    walked = sorted(folders_below(folder), key=lambda entry: natural_key(str(entry[0])))
    for place, names, _ in walked:
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue
        for name in sorted(names, key=natural_key):
            path = place / name
            if path.suffix.lower() in wanted and path.is_file():
                yield path


def checkpoint_name(path: Path, folders: Iterable[Path]) -> str:
    """A checkpoint's path below the folder it is in; of one outside them its file name."""
    for folder in folders:
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _checkpoints(folders: tuple[Path, ...], hashes: HashBook, first: Path | None) -> tuple[Checkpoint, ...]:
    found: dict[str, Checkpoint] = {}
    if first is not None and first.is_file():
        one = _checkpoint(checkpoint_name(first, folders), first, hashes)
        found[one.name] = one
    for folder in folders:
        for path in files_below(folder, CHECKPOINT_ENDINGS):
            if path.stem.endswith(".vae"):
                continue
            name = path.relative_to(folder).as_posix()
            found[name] = _checkpoint(name, path, hashes)  # a name keeps its place, and is the last folder's
    return tuple(found.values())


def _checkpoint(name: str, path: Path, hashes: HashBook) -> Checkpoint:
    sha256 = hashes.known(path)
    short = sha256[:10] if sha256 else None
    sidecar = path.with_suffix(".yaml")
    return Checkpoint(
        title=f"{name} [{short}]" if short else name,
        name=name,
        filename=str(path),
        hash=short,
        sha256=sha256,
        config=str(sidecar) if sidecar.is_file() else None,
        legacy_hash=legacy_hash(path),
    )


def _vaes(folders: tuple[Path, ...], beside: tuple[Path, ...]) -> tuple[ModelFile, ...]:
    """The data dir's own first, then those of flags: of several of one name the last counts.

    Those named ``.vae.`` beside checkpoints (of whose folders the data dir's is the last) come before
    each.
    """
    found: dict[str, ModelFile] = {}
    for vaes, checkpoints in zip_longest(folders, reversed(beside)):
        paths = [path for path in _vae_files(checkpoints) if path.stem.endswith(".vae")]
        for path in [*paths, *_vae_files(vaes)]:
            found[path.name] = ModelFile(path.name, str(path))
    return tuple(sorted(found.values(), key=lambda one: natural_key(one.name)))


def _vae_files(folder: Path | None) -> list[Path]:
    return [] if folder is None else list(files_below(folder, VAE_ENDINGS))


def _by_stem(folders: tuple[Path, ...], endings: tuple[str, ...]) -> dict[str, Path]:
    """Files by name without ending. Within one folder a later one of the same name replaces an earlier."""
    found: dict[str, Path] = {}
    for folder in folders:
        here = {path.stem: path for path in files_below(folder, endings)}
        for name, path in here.items():
            found.setdefault(name, path)
    return found


def _loras(folders: tuple[Path, ...]) -> tuple[ModelFile, ...]:
    found = {path.stem: path for folder in folders for path in files_below(folder, LORA_ENDINGS)}
    return tuple(_lora(name, path) for name, path in found.items())


def _lora(name: str, path: Path) -> ModelFile:
    metadata: dict[str, Any] = {}
    if path.suffix.lower() == ".safetensors":
        outline = _outline(path)
        if outline is not None:
            order = {key: place for place, key in enumerate(LORA_METADATA_FIRST)}
            metadata = dict(sorted(outline.metadata.items(), key=lambda item: order.get(item[0], len(order))))
    return ModelFile(name, str(path), {"alias": metadata.get("ss_output_name", name), "metadata": metadata})


def _embeddings(folders: tuple[Path, ...]) -> tuple[ModelFile, ...]:
    found = {}
    for name, path in _by_stem(folders, EMBEDDING_ENDINGS).items():
        outline = _outline(path)
        size = _embedding_size(outline) if outline is not None else None
        if size is None:
            if outline is not None:
                log.warning("%s is not listed: it is no textual inversion", path)
            continue
        assert outline is not None
        about = {key: outline.values.get(key) for key in ("step", "sd_checkpoint", "sd_checkpoint_name")}
        found[name] = ModelFile(name, str(path), {**about, "shape": size[0], "vectors": size[1]})
    return tuple(sorted(found.values(), key=lambda one: one.name.lower()))


def _embedding_size(outline: Outline) -> tuple[int, int] | None:
    """Width of each vector and number of vectors; the two widths of an SDXL embedding added."""
    shapes = outline.shapes
    trained = [shape for key, shape in shapes.items() if key.startswith("string_to_param/")]
    if len(trained) == 1:
        return _width_and_count(trained[0])
    if {"clip_l", "clip_g"} <= set(shapes):
        return shapes["clip_l"][-1] + shapes["clip_g"][-1], shapes["clip_g"][0]
    if len(shapes) == 1:
        return _width_and_count(next(iter(shapes.values())))
    return None


def _width_and_count(shape: tuple[int, ...]) -> tuple[int, int] | None:
    if not 1 <= len(shape) <= 2:
        return None
    return shape[-1], shape[0] if len(shape) == 2 else 1


def _hypernetworks(folders: tuple[Path, ...]) -> tuple[ModelFile, ...]:
    found = _by_stem(folders, (".pt",))
    ordered = sorted(found.items(), key=lambda item: str(item[1]).lower())
    return tuple(ModelFile(name, str(path)) for name, path in ordered if name != "None")


def _controlnets(folders: tuple[Path, ...]) -> tuple[ModelFile, ...]:
    found: dict[str, ModelFile] = {}
    for folder in folders:
        annotators = folder / "annotators"
        paths = [path for path in files_below(folder, CONTROLNET_ENDINGS) if annotators not in path.parents]
        for path in sorted(paths, key=lambda one: one.name):
            name = f"{path.stem} [{legacy_hash(path)}]"
            if path.stem != "None":
                found.setdefault(name, ModelFile(name, str(path), {"stem": path.stem}))
    return tuple(found.values())


def upscalers(folders: ModelFolders) -> tuple[ModelFile, ...]:
    """None, Lanczos, Nearest, then files by name, each with its folder's ``kind``.

    Published files of RealESRGAN and DAT also go by the webui's names.
    """
    real = tuple(folder.parent / "RealESRGAN" for folder in folders.esrgan)
    kinds = {
        "ESRGAN": (*folders.esrgan, *real),
        "DAT": folders.dat,
        "HAT": folders.hat,
        "ScuNET": folders.scunet,
        "SwinIR": folders.swinir,
    }
    found: dict[str, ModelFile] = {}
    for kind, places in kinds.items():
        for name, path in _by_stem(places, UPSCALER_ENDINGS).items():
            found.setdefault(name, _upscaler(name, kind, 4.0, path))
            if name in PUBLISHED_NAMES:
                published, scale = PUBLISHED_NAMES[name]
                found[published] = _upscaler(published, kind, scale, path)
    plain = tuple(_upscaler(name, name, 4.0, None) for name in PLAIN_UPSCALERS)
    return plain + tuple(sorted(found.values(), key=lambda one: one.name.lower()))


def _upscaler(name: str, kind: str, scale: float, path: Path | None) -> ModelFile:
    where = str(path) if path else None
    model_name = None if name in _PUBLISHED else MODEL_NAMES.get(kind)
    about = {"model_name": model_name, "model_path": where, "scale": scale, "kind": kind}
    return ModelFile(name, where or "", about)


def _outline(path: Path) -> Outline | None:
    try:
        return safetensors_outline(path) if path.suffix.lower() == ".safetensors" else pickle_outline(path)
    except (OutlineUnreadable, OSError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return None
