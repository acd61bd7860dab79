"""The job of a native request, inside the webui."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd_cloud.engines.webui_request import check_names, checkpoint_title, vae_name
from sd_cloud.errors import CheckpointNotFound
from sd_cloud.job import Job, Kind


async def native_job(kind: Kind, payload: Mapping[str, Any], *, owner: str) -> Job:
    """Its checkpoint and VAE taken out of the overrides, its names checked before it waits.

    A request that names no checkpoint gets the configured one by name, so that it can be grouped
    with others. Raises CheckpointNotFound, NotFound.
    """
    from modules.shared import opts

    override = dict(payload.get("override_settings") or {})
    checkpoint, vae = override.pop("sd_model_checkpoint", None), override.pop("sd_vae", None)
    payload = {**payload, "override_settings": override}
    check_names(payload)
    if vae is not None:
        vae = vae_name(vae)
    if checkpoint is None:
        checkpoint = _configured(opts.sd_model_checkpoint)
    return Job(kind, payload, owner=owner, checkpoint=checkpoint, vae=vae)


def _configured(name: str | None) -> str | None:
    """The configured checkpoint; None where it is gone and the webui takes the first there is."""
    if not name:
        return None
    try:
        return checkpoint_title(name)
    except CheckpointNotFound:
        return None
