"""A job as the webui's own request, its names checked.

The webui falls back in silence for a checkpoint, VAE or sampler that it does not know: 200, and the
wrong picture. Here such a name is refused.

Written against stable-diffusion-webui 1.10.1 (``modules/sd_models.py``, ``modules/sd_samplers.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from sd_cloud.engines import webui_forge
from sd_cloud.errors import CheckpointNotFound, NotFound, ServiceError
from sd_cloud.job import Job

#: What every job of ours needs of the options, whatever they are: pictures without loss, and in
#: the order of their seeds.
NEEDED_OPTIONS: Mapping[str, Any] = {
    "samples_format": "png",
    "return_mask": False,
    "return_mask_composite": False,
}
#: field: the value that means "none of its own".
CHECKPOINT_FIELDS = {"refiner_checkpoint": "None", "hr_checkpoint_name": "Use same checkpoint"}


def native_payload(job: Job) -> dict[str, Any]:
    """The native request of a txt2img or img2img job. Raises CheckpointNotFound, NotFound."""
    payload = dict(job.payload)
    override = dict(payload.get("override_settings") or {})
    checkpoint = job.checkpoint or override.get("sd_model_checkpoint")
    if checkpoint is not None:
        override["sd_model_checkpoint"] = checkpoint_title(checkpoint)
    vae = job.vae or override.get("sd_vae")
    if vae is not None:
        vae = vae_name(vae)
        override |= webui_forge.with_vae(vae, job.options) if webui_forge.is_forge() else {"sd_vae": vae}
    check_names(payload)
    return {
        **payload,
        "override_settings": override,
        "override_settings_restore_afterwards": True,
        "force_task_id": job.id,
        # Saving is ours, and the webui's answer must carry the pictures for it.
        "save_images": False,
        "send_images": True,
    }


def own_options(job: Job, payload: Mapping[str, Any]) -> dict[str, Any]:
    """What the options are for this job before its overrides: as they were when it was accepted.

    Every option that the request overrides is among them, since the webui puts back only those
    that have a value, and the VAE it loaded for a request only along with its option.
    """
    from modules.shared import opts

    values = {**job.options, **NEEDED_OPTIONS}
    for name in payload.get("override_settings") or ():
        if name not in values and name not in opts.data and name in opts.data_labels:
            values[name] = opts.get_default(name)
    return values


def check_names(payload: Mapping[str, Any]) -> None:
    """Samplers, schedulers and further checkpoints that the webui would replace in silence."""
    _check_sampler(payload, "sampler_name", payload.get("sampler_name") or payload.get("sampler_index"))
    _check_scheduler(payload, "scheduler")
    if payload.get("hr_sampler_name") != "Use same sampler":
        _check_sampler(payload, "hr_sampler_name", payload.get("hr_sampler_name"))
    if payload.get("hr_scheduler") != "Use same scheduler":
        _check_scheduler(payload, "hr_scheduler")
    for field, none in CHECKPOINT_FIELDS.items():
        wanted = payload.get(field)
        if wanted and wanted not in (none, "none"):
            checkpoint_title(wanted, field)
    _check_controlnets(payload)


def checkpoint_title(name: str, field: str = "sd_model_checkpoint") -> str:
    """The webui's own title of a checkpoint. Raises CheckpointNotFound."""
    from modules import sd_models

    found = sd_models.checkpoint_aliases.get(name)
    if found is None:
        raise _missing(CheckpointNotFound, "checkpoint", name, sd_models.checkpoints_list, field)
    return cast(str, found.title)


def vae_name(name: str, field: str = "sd_vae") -> str:
    """The webui's own name of a VAE, which callers may give without its ending."""
    from modules import sd_vae

    if name in ("Automatic", "None"):
        return name
    for known in sd_vae.vae_dict:
        if name in (known, known.rsplit(".", 1)[0]):
            return cast(str, known)
    raise _missing(CheckpointNotFound, "VAE", name, ("Automatic", "None", *sd_vae.vae_dict), field)


def _check_sampler(payload: Mapping[str, Any], field: str, name: str | None) -> None:
    from modules import sd_samplers, sd_schedulers

    if not name or name in sd_samplers.all_samplers_map:
        return
    # "DPM++ 2M Karras": the sampler and the scheduler in one word.
    for scheduler in sd_schedulers.schedulers:
        for ending in (scheduler.label, scheduler.name, *(scheduler.aliases or ())):
            if name.endswith(f" {ending}") and name[: -len(ending) - 1] in sd_samplers.all_samplers_map:
                return
    known = [one.name for one in sd_samplers.all_samplers]
    if name.lower() in {one.lower() for one in known}:
        known = [one for one in known if one.lower() == name.lower()]  # only the case is wrong
    raise _missing(NotFound, "sampler", name, known, field)


def _check_scheduler(payload: Mapping[str, Any], field: str) -> None:
    from modules import sd_schedulers

    name = payload.get(field)
    if name and name not in sd_schedulers.schedulers_map:
        raise _missing(NotFound, "scheduler", name, [one.label for one in sd_schedulers.schedulers], field)


def _check_controlnets(payload: Mapping[str, Any]) -> None:
    """Models of ControlNet units, which sd-webui-controlnet looks for by any part of their names."""
    extension: Any = sys.modules.get("scripts.global_state")
    if extension is None:
        return  # no such extension, or Forge's own, whose error has the name
    for unit, field in _controlnet_units(payload):
        wanted = unit.get("model")
        if not unit.get("enabled", True) or not wanted or wanted == "None" or _controlnet_is_there(wanted):
            continue
        extension.update_cn_models()  # it may have been added meanwhile
        if not _controlnet_is_there(wanted):
            there = [name for name in extension.cn_models if name != "None"]
            raise _missing(CheckpointNotFound, "ControlNet model", wanted, there, f"{field}.model")


def _controlnet_is_there(name: str) -> bool:
    extension = sys.modules["scripts.global_state"]
    return name in extension.cn_models or any(name.lower() in one for one in extension.cn_models_names)


def _controlnet_units(payload: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for name, block in (payload.get("alwayson_scripts") or {}).items():
        units = block.get("args") if name.lower() == "controlnet" and isinstance(block, Mapping) else None
        for index, unit in enumerate(units if isinstance(units, list) else ()):
            if isinstance(unit, Mapping):
                yield unit, f"alwayson_scripts.{name}.args[{index}]"


def _missing(
    kind: type[ServiceError], what: str, name: str, there: Iterable[str], field: str
) -> ServiceError:
    return kind(f"no {what} {name!r}; there are: {', '.join(there) or 'none'}", field=field)
