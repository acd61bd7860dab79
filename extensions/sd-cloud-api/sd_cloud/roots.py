"""Where files that a request names may be: below an output root, links followed, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sd_cloud.errors import InputRefused
from sd_cloud.job import OPERATOR
from sd_cloud.settings import Settings

CLOSED_FOLDERS = ("models", "embeddings", "extensions")
#: Below the outputs dir: one folder per owner, with the pictures of their tasks.
OWNERS_FOLDER = "images"


@dataclass(frozen=True)
class Roots:
    """The folders a request may name paths in, and those it never may.

    ``closed`` wins over ``opened``: an operator who opens the whole data dir has not opened the
    folders in it from which models and code are loaded. All are resolved, links followed.
    """

    outputs: Path
    opened: tuple[Path, ...]
    closed: tuple[Path, ...]

    @classmethod
    def of(cls, settings: Settings) -> Roots:
        folders = settings.folders
        models = (
            *folders.checkpoints,
            *folders.vaes,
            *folders.loras,
            *folders.embeddings,
            *folders.hypernetworks,
            *folders.controlnets,
            *folders.esrgan,
            *folders.dat,
            *folders.hat,
            *folders.scunet,
            *folders.swinir,
            *folders.gfpgan,
            *folders.codeformer,
        )
        own = tuple(settings.data_dir / name for name in CLOSED_FOLDERS)
        return cls(
            outputs=settings.outputs_dir,
            opened=_resolved((settings.outputs_dir, *settings.save_dir_roots)),
            closed=_resolved((*own, *models, settings.state_dir)),
        )

    def place(
        self, path: str | Path, *, field: str, below: Path | None = None, owner: str | None = None
    ) -> Path:
        """The resolved place of a path, which need not exist yet.

        A relative path is below ``below`` (default: the outputs dir). Raises InputRefused, naming
        ``field`` and the rule, when it ends outside the opened folders, inside a closed one, or, with
        an ``owner``, among another owner's task pictures.
        """
        text = str(path)
        if "\0" in text:
            raise InputRefused("a path holds no zero byte", field=field)
        place = resolved((below or self.outputs) / text)
        if any(place.is_relative_to(folder) for folder in self.closed):
            raise InputRefused(
                f"{text} is in a folder that models, extensions or the service's own state are in; "
                "no request may name it",
                field=field,
            )
        if not self.holds(place):
            raise InputRefused(
                f"{text} is outside the output folders; name a place below {self.outputs} "
                "or have the operator open it with --save-dir-root",
                field=field,
            )
        if owner is not None and not self._may(owner, place):
            raise InputRefused(f"{text} belongs to another user", field=field)
        return place

    def readable(self, path: str | Path, *, field: str, owner: str, below: Path | None = None) -> Path:
        """`place`, for what a request reads: a user's are the pictures in their own folder.

        The other output folders are shared, and whose picture is whose there no path can tell.
        """
        place = self.place(path, field=field, below=below, owner=owner)
        own = self.outputs / OWNERS_FOLDER / owner_folder(owner)
        if owner != OPERATOR and not place.is_relative_to(resolved(own)):
            raise InputRefused(
                f"{path} is not among your own pictures; name one below {own}, or send it as base64 "
                "or as a link",
                field=field,
            )
        return place

    def _may(self, owner: str, place: Path) -> bool:
        pictures = resolved(self.outputs / OWNERS_FOLDER)
        if place == pictures or not place.is_relative_to(pictures):
            return True
        return place.relative_to(pictures).parts[0] == owner_folder(owner)

    def holds(self, place: Path) -> bool:
        """Whether a resolved place may be read and written on a caller's behalf."""
        return any(place.is_relative_to(root) for root in self.opened) and not any(
            place.is_relative_to(folder) for folder in self.closed
        )


def owner_folder(owner: str) -> str:
    """An owner's name as one folder's name; different owners have different ones."""
    folder = quote(owner, safe="@") or "_"
    return folder if folder.strip(".") else folder.replace(".", "%2E")


def resolved(path: Path) -> Path:
    """The path with every link followed, as far as it exists."""
    return Path(os.path.realpath(path))


def _resolved(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(resolved(path) for path in paths))
