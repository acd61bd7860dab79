"""Which files a job means: its checkpoint and its VAE, by the webui's rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sd_cloud.engines.base import Catalogue, Checkpoint, ModelFile
from sd_cloud.engines.diffusion.catalogue import vae_beside
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import CheckpointNotFound
from sd_cloud.job import Job

AUTOMATIC = ("Automatic", "auto")


def wanted_checkpoint(job: Job, options: Options, catalogue: Catalogue) -> Checkpoint:
    """The job's checkpoint, else ``override_settings``', else the options', else the first by name.

    Raises CheckpointNotFound when what the request names is not there. What only the options
    name may be gone: then the first is taken, as the webui does.
    """
    own = (job.payload.get("override_settings") or {}).get("sd_model_checkpoint")
    for name, field in (
        (job.checkpoint, "sd_model_checkpoint"),
        (own, "override_settings.sd_model_checkpoint"),
    ):
        if name:
            return find_checkpoint(str(name), catalogue, field)
    configured = options.get("sd_model_checkpoint")
    found = catalogue.checkpoint(str(configured)) if configured else None
    if found is None and not catalogue.checkpoints:
        raise CheckpointNotFound("no checkpoint is installed: put one into models/Stable-diffusion")
    return found or catalogue.checkpoints[0]


def find_checkpoint(name: str, catalogue: Catalogue, field: str) -> Checkpoint:
    """A checkpoint by any of its names; failing that, by a part of its title. Raises CheckpointNotFound."""
    found = catalogue.checkpoint(name) or catalogue.checkpoint(name.split(" [")[0])
    if found is None:
        similar = sorted(
            (one for one in catalogue.checkpoints if name in one.title), key=lambda one: len(one.title)
        )
        found = similar[0] if similar and name else None
    if found is None:
        there = _listed([one.name for one in catalogue.checkpoints])
        raise CheckpointNotFound(
            f"no checkpoint is called {name!r}; there are {there}{catalogue.unhashed_remark(name)}",
            field=field,
        )
    return found


def wanted_vae(
    job: Job, options: Options, catalogue: Catalogue, checkpoint: Checkpoint, only: Path | None = None
) -> ModelFile | None:
    """The VAE that replaces the checkpoint's own, or None for its own.

    ``only`` (``--vae-path``) wins over everything, then a named one; ``Automatic`` takes what the
    checkpoint's notes or a file of its name say.
    Raises CheckpointNotFound when the request names one that is not there.
    """
    if only is not None:
        return ModelFile(only.name, str(only))
    own = (job.payload.get("override_settings") or {}).get("sd_vae")
    for name, field in ((job.vae, "sd_vae"), (own, "override_settings.sd_vae")):
        if name and str(name) not in AUTOMATIC:
            return _named_vae(str(name), catalogue, field)
    configured = options.text("sd_vae")
    overrides = options.flag("sd_vae_overrides_per_model_preferences")
    named = next((one for one in catalogue.vaes if one.name == configured), None)
    if overrides and configured not in AUTOMATIC:
        return named
    noted = _noted_vae(Path(checkpoint.filename))
    if noted == "None":
        return None
    found = next((one for one in catalogue.vaes if one.name == noted), None)
    return found or vae_beside(catalogue, checkpoint) or named


def _named_vae(name: str, catalogue: Catalogue, field: str) -> ModelFile | None:
    if name == "None":
        return None
    found = next((one for one in catalogue.vaes if name in (one.name, one.name.rsplit(".", 1)[0])), None)
    if found is None:
        there = _listed([one.name for one in catalogue.vaes])
        raise CheckpointNotFound(f"no VAE is called {name!r}; there are {there}", field=field)
    return found


def _noted_vae(checkpoint: Path) -> str | None:
    """``vae`` in the notes that the webui keeps beside a checkpoint (``NAME.json``)."""
    notes = checkpoint.with_suffix(".json")
    if not notes.is_file():
        return None
    try:
        content: Any = json.loads(notes.read_text("utf-8"))
    except ValueError:
        return None
    noted = content.get("vae") if isinstance(content, dict) else None
    return noted if isinstance(noted, str) and noted not in AUTOMATIC else None


def _listed(names: Sequence[str], most: int = 20) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
