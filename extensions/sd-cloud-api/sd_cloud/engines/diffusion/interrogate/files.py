"""Where the weights that describe pictures are: the webui's own places. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sd_cloud.errors import NotImplementedHere
from sd_cloud.settings import Settings

BLIP = "model_base_caption_capfilt_large.pth"
CLIP = "ViT-L-14.pt"
DEEPBOORU = "model-resnet_custom_v3.pt"
MODELS = ("clip", "deepdanbooru")


@dataclass(frozen=True)
class Weights:
    """The files of one ``model`` of an interrogate request."""

    blip: Path | None = None
    clip: Path | None = None
    deepbooru: Path | None = None


def weights_of(model: str, settings: Settings, field: str = "model") -> Weights:
    """Raises NotImplementedHere naming the file that is missing and its folder."""
    folders = settings.folders
    if model == "deepdanbooru":
        return Weights(deepbooru=_found(DEEPBOORU, folders.deepbooru, model, field))
    return Weights(
        blip=_found(BLIP, folders.blip, model, field),
        clip=_found(CLIP, (*folders.clip, Path.home() / ".cache" / "clip"), model, field, any_name=False),
    )


def _found(name: str, folders: tuple[Path, ...], model: str, field: str, *, any_name: bool = True) -> Path:
    """A file by its published name, else, as the webui has it, any other of its kind there."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    others = (path for folder in folders for path in sorted(folder.glob(f"*{Path(name).suffix}")))
    other = next(others, None) if any_name else None
    if other is None:
        where = " or ".join(str(folder) for folder in folders)
        raise NotImplementedHere(f"{model!r} needs {name} in {where}, which is not there", field=field)
    return other
