"""Where stable-diffusion-webui-forge is not the webui it was made from.

It loads what was selected last, whoever selected it, not what the options say; and it takes a VAE as
one of the additional modules of a checkpoint, not by the option ``sd_vae``.

Written against Forge f2.0.1v1.10.1-previous-669 (``modules_forge/main_entry.py``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_cloud.errors import CheckpointNotFound

MODULES = "forge_additional_modules"


def is_forge() -> bool:
    return importlib.util.find_spec("modules_forge") is not None


def models_follow_options() -> None:
    """From now on a picture is made with the checkpoint and modules that its thread's options name.

    Idempotent. Forge calls this place for every picture, with the request's overrides set and its
    queue held.
    """
    from modules import processing, sd_models, shared
    from modules_forge import main_entry

    load = processing.manage_model_and_prompt_cache
    if getattr(load, "sd_cloud", False):
        return

    def manage_model_and_prompt_cache(p: Any) -> None:
        selected = sd_models.model_data.forge_loading_parameters
        checkpoint = sd_models.select_checkpoint()
        if (
            getattr(selected.get("checkpoint_info"), "filename", None)
            != getattr(checkpoint, "filename", None)
            or selected.get("additional_modules") != shared.opts.forge_additional_modules
        ):
            main_entry.refresh_model_loading_parameters()
        load(p)

    manage_model_and_prompt_cache.sd_cloud = True  # type: ignore[attr-defined]
    processing.manage_model_and_prompt_cache = manage_model_and_prompt_cache


def with_vae(vae: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that have a checkpoint decoded by ``vae``; its text encoders stay what they are.

    Raises CheckpointNotFound for one that Forge does not find as a module.
    """
    from modules import sd_vae
    from modules_forge import main_entry

    if vae == "Automatic":
        return {}
    configured = options.get(MODULES) or []
    others = [one for one in configured if Path(one).name not in sd_vae.vae_dict]
    if vae == "None":
        return {MODULES: others}
    if vae not in main_entry.module_list:
        main_entry.refresh_models()
    if vae not in main_entry.module_list:
        raise CheckpointNotFound(f"Forge takes VAEs from models/VAE; {vae} is not there", field="sd_vae")
    return {MODULES: [*others, main_entry.module_list[vae]]}
