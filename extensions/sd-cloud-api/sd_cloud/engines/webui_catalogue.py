"""What the webui we live in can be asked for, from its own lists."""

from __future__ import annotations

import sys
from typing import Any

from sd_cloud.engines.base import Catalogue, Checkpoint, ModelFile, Sampler, Scheduler, ScriptInfo
from sd_cloud.job import Kind


def catalogue() -> Catalogue:
    """What the webui lists now. Cheap: it reads no folder."""
    from modules import scripts, sd_models, sd_samplers, sd_schedulers, sd_vae, shared

    return Catalogue(
        checkpoints=tuple(_checkpoint(one) for one in list(sd_models.checkpoints_list.values())),
        vaes=tuple(ModelFile(name, path) for name, path in list(sd_vae.vae_dict.items())),
        loras=_loras(),
        embeddings=_embeddings(),
        hypernetworks=tuple(ModelFile(name, path) for name, path in list(shared.hypernetworks.items())),
        upscalers=tuple(ModelFile(one.name, one.data_path or "") for one in shared.sd_upscalers),
        samplers=tuple(
            Sampler(one.name, tuple(one.aliases), dict(one.options)) for one in sd_samplers.all_samplers
        ),
        schedulers=tuple(
            Scheduler(one.name, one.label, tuple(one.aliases or ())) for one in sd_schedulers.schedulers
        ),
        scripts=_scripts(scripts.scripts_txt2img, scripts.scripts_img2img),
    )


def look_again() -> None:
    """Have the webui look through its folders of checkpoints and VAEs."""
    from modules import sd_models, sd_vae

    sd_models.list_models()
    sd_vae.refresh_vae_list()


def _checkpoint(one: Any) -> Checkpoint:
    return Checkpoint(
        title=one.title, name=one.name, filename=one.filename, hash=one.shorthash, sha256=one.sha256
    )


def _scripts(txt2img: Any, img2img: Any) -> tuple[ScriptInfo, ...]:
    """Their titles and kinds; what arguments they take the webui itself says."""
    of_each: dict[Kind, list[str]] = {
        "txt2img": [one.title() for one in txt2img.selectable_scripts if one.name],
        "img2img": [one.title() for one in img2img.selectable_scripts if one.name],
    }
    return tuple(
        ScriptInfo(title, {kind: () for kind, titles in of_each.items() if title in titles})
        for title in sorted({title for titles in of_each.values() for title in titles})
    )


def _loras() -> tuple[ModelFile, ...]:
    """Those of the built-in Lora extension, which may be disabled."""
    networks = sys.modules.get("networks")
    available = getattr(networks, "available_networks", {})
    return tuple(ModelFile(name, one.filename) for name, one in list(available.items()))


def _embeddings() -> tuple[ModelFile, ...]:
    """In Forge the page keeps the list; there is none that follows the model."""
    from modules import sd_hijack, ui_extra_networks_textual_inversion

    held_by = (sd_hijack.model_hijack, ui_extra_networks_textual_inversion)
    [database, *_] = (one.embedding_db for one in held_by if hasattr(one, "embedding_db"))
    known = database.word_embeddings
    return tuple(ModelFile(name, one.filename or "") for name, one in list(known.items()))
