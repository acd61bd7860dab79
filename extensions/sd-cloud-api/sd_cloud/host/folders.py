"""The webui's folders below a data dir, made on first start. What is there stays as it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from sd_cloud.settings import Settings

OUTPUTS = (
    "txt2img-images",
    "txt2img-grids",
    "img2img-images",
    "img2img-grids",
    "extras-images",
    "init-images",
)


def make_folders(settings: Settings) -> None:
    """Make what is missing of the webui's folders, ``config.json`` and ``styles.csv``.

    A folder that a flag put elsewhere and that is not there is made too: the webui does so.
    Raises OSError with a sentence where the data dir can't be written.
    """
    try:
        _make_folders(settings)
    except OSError as error:
        raise OSError(
            f"--data-dir: {settings.data_dir} can't be used ({error.filename}: {error.strerror}); "
            "give a folder that this user may write to"
        ) from error


def _make_folders(settings: Settings) -> None:
    folders = [settings.data_dir / name for name in ("extensions", "interrogate")]
    folders += [settings.outputs_dir / name for name in OUTPUTS]
    for field in fields(settings.folders):
        folders += getattr(settings.folders, field.name)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    _make(settings.data_dir / "config.json", "{}\n")
    _make(settings.data_dir / "styles.csv", "name,prompt,negative_prompt\n")


def _make(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        pass
