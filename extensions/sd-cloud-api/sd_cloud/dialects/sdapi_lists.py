"""Native routes that list what there is: straight from the catalogue."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from sd_cloud.dialects import sdapi_models as models
from sd_cloud.dialects.sdapi_checks import (
    HYPERTILE,
    LATENT_UPSCALE_MODES,
    SOFT_INPAINTING,
    always_on,
    scripts_of,
)
from sd_cloud.dialects.sdapi_errors import answer
from sd_cloud.engines.base import Catalogue, ModelFile, ScriptArgument
from sd_cloud.engines.diffusion.scripts import forms
from sd_cloud.engines.diffusion.styles import read_styles
from sd_cloud.job import Kind
from sd_cloud.service import Service
from sd_cloud.settings import Settings

#: What restoring faces takes (:mod:`sd_cloud.engines.diffusion.extras_faces`, which is the engine's).
RESTORER_PACKAGES = ("spandrel", "facexlib")
RESTORER_WEIGHTS = {"CodeFormer": "*codeformer*.pth", "GFPGAN": "*GFPGAN*.pth"}


def add_lists(routes: APIRouter, service: Service, settings: Settings) -> None:
    lists = _Lists(service, settings)
    for path, endpoint, answers in (
        ("/samplers", lists.get_samplers, list[models.SamplerItem]),
        ("/schedulers", lists.get_schedulers, list[models.SchedulerItem]),
        ("/upscalers", lists.get_upscalers, list[models.UpscalerItem]),
        ("/latent-upscale-modes", lists.get_latent_upscale_modes, list[models.LatentUpscalerModeItem]),
        ("/sd-models", lists.get_sd_models, list[models.SDModelItem]),
        ("/sd-vae", lists.get_sd_vaes, list[models.SDVaeItem]),
        ("/hypernetworks", lists.get_hypernetworks, list[models.HypernetworkItem]),
        ("/face-restorers", lists.get_face_restorers, list[models.FaceRestorerItem]),
        ("/realesrgan-models", lists.get_realesrgan_models, list[models.RealesrganItem]),
        ("/prompt-styles", lists.get_prompt_styles, list[models.PromptStyleItem]),
        ("/embeddings", lists.get_embeddings, models.EmbeddingsResponse),
        ("/scripts", lists.get_scripts_list, models.ScriptsList),
        ("/script-info", lists.get_script_info, list[models.ScriptInfo]),
        ("/extensions", lists.get_extensions_list, list[models.ExtensionItem]),
        ("/loras", lists.get_loras, None),
    ):
        routes.add_api_route(path, endpoint, methods=["GET"], response_model=answers)


class _Lists:
    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._settings = settings

    @property
    def _there(self) -> Catalogue:
        return self._service.catalogue()

    async def get_samplers(self) -> Response:
        return answer(
            [
                {"name": one.name, "aliases": list(one.aliases), "options": dict(one.options)}
                for one in self._there.samplers
            ]
        )

    async def get_schedulers(self) -> Response:
        return answer(
            [
                {
                    "name": one.name,
                    "label": one.label,
                    "aliases": list(one.aliases) or None,
                    "default_rho": one.default_rho,
                    "need_inner_model": one.need_inner_model,
                }
                for one in self._there.schedulers
            ]
        )

    async def get_upscalers(self) -> Response:
        return answer(
            [
                {
                    "name": one.name,
                    "model_name": one.extra.get("model_name"),
                    "model_path": one.extra.get("model_path", one.filename or None),
                    "model_url": None,
                    "scale": one.extra.get("scale", 4.0),
                }
                for one in self._there.upscalers
            ]
        )

    async def get_latent_upscale_modes(self) -> Response:
        return answer([{"name": name} for name in LATENT_UPSCALE_MODES])

    async def get_sd_models(self) -> Response:
        return answer(
            [
                {
                    "title": one.title,
                    "model_name": one.name.rsplit(".", 1)[0].replace("/", "_"),
                    "hash": one.hash,
                    "sha256": one.sha256,
                    "filename": one.filename,
                    "config": one.config,
                }
                for one in self._there.checkpoints
            ]
        )

    async def get_sd_vaes(self) -> Response:
        return answer([{"model_name": one.name, "filename": one.filename} for one in self._there.vaes])

    async def get_hypernetworks(self) -> Response:
        return answer([{"name": one.name, "path": one.filename} for one in self._there.hypernetworks])

    async def get_face_restorers(self) -> Response:
        """Those whose weights and packages are installed: the webui would download the rest."""
        there = all(find_spec(package) is not None for package in RESTORER_PACKAGES)
        folders = {"CodeFormer": self._settings.folders.codeformer, "GFPGAN": self._settings.folders.gfpgan}
        return answer(
            [
                {"name": name, "cmd_dir": None}
                for name, places in folders.items()
                if there and any(any(place.glob(RESTORER_WEIGHTS[name])) for place in places)
            ]
        )

    async def get_realesrgan_models(self) -> Response:
        """Those installed. The webui lists those it could download; this service downloads none."""
        return answer(
            [
                {"name": one.name, "path": one.filename, "scale": int(one.extra.get("scale", 4))}
                for one in self._there.upscalers
                if one.name.startswith("R-ESRGAN")
            ]
        )

    async def get_prompt_styles(self) -> Response:
        styles = await asyncio.to_thread(read_styles, self._settings.styles_patterns)
        return answer(
            [
                {"name": name, "prompt": one.prompt, "negative_prompt": one.negative_prompt}
                for name, one in styles.items()
            ]
        )

    async def get_embeddings(self) -> Response:
        """All of them as loaded: which of them fit is decided by each request's own checkpoint."""
        return answer(
            {"loaded": {one.name: _embedding(one) for one in self._there.embeddings}, "skipped": {}}
        )

    async def get_loras(self) -> Response:
        return answer(
            [
                {
                    "name": one.name,
                    "alias": one.extra.get("alias", one.name),
                    "path": one.filename,
                    "metadata": one.extra.get("metadata", {}),
                }
                for one in self._there.loras
            ]
        )

    async def get_extensions_list(self) -> Response:
        """None: extensions of the webui run in the webui, not in this host."""
        return answer([])

    async def get_scripts_list(self) -> Response:
        kinds: tuple[Kind, ...] = ("txt2img", "img2img")
        return answer({kind: [*scripts_of(kind, self._there), *always_on(kind)] for kind in kinds})

    async def get_script_info(self) -> Response:
        """Names, kinds and arguments, in the order of ``script_args``."""
        kinds: tuple[Kind, ...] = ("txt2img", "img2img")
        return answer([info for kind in kinds for info in self._script_infos(kind)])

    def _script_infos(self, kind: Kind) -> list[dict[str, Any]]:
        there = self._there
        args: dict[str, list[dict[str, Any]]] = {
            "sampler": [
                _arg("Sampling steps", 20, 1, 150, 1),
                _arg("Sampling method", "DPM++ 2M", choices=[one.name for one in there.samplers]),
                _arg("Schedule type", "Automatic", choices=[one.label for one in there.schedulers]),
            ],
            "refiner": [
                _arg("Refiner", False),
                _arg("Checkpoint", "", choices=[one.title for one in there.checkpoints]),
                _arg("Switch at", 0.8, 0.01, 1.0, 0.01),
            ],
            "seed": [
                _arg("Seed", -1, step=1),
                _arg("Extra", False),
                _arg("Variation seed", -1, step=1),
                _arg("Variation strength", 0.0, 0, 1, 0.01),
                _arg("Resize seed from width", 0, 0, 2048, 8),
                _arg("Resize seed from height", 0, 0, 2048, 8),
            ],
            SOFT_INPAINTING: [_script_arg(one) for one in forms.SOFT_INPAINTING],
        }
        args |= {
            one.name: [_script_arg(argument) for argument in one.arguments[kind]]
            for one in there.scripts
            if kind in one.arguments
        }
        selectable = scripts_of(kind, there)
        return [
            {
                "name": name,
                "is_alwayson": name not in selectable,
                "is_img2img": kind == "img2img",
                "args": args.get(name, []),
            }
            for name in [*selectable, *always_on(kind)]
            if name != HYPERTILE  # the webui tells nothing of a script without arguments
        ]


def _script_arg(one: ScriptArgument) -> dict[str, Any]:
    """Choices by their names, as the webui's page holds them."""
    if one.kind == "number":
        return _arg(one.label, one.default, one.low, one.high, one.step)
    if one.kind in ("place", "axis"):
        return _arg(one.label, one.choices[one.default], choices=list(one.choices))
    if one.kind == "list":
        return _arg(one.label, None, choices=[])
    return _arg(one.label, one.default, choices=list(one.choices) or None)


def _arg(
    label: str,
    value: Any,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    choices: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "label": label,
        "value": value,
        "minimum": minimum,
        "maximum": maximum,
        "step": step,
        "choices": choices,
    }


def _embedding(one: ModelFile) -> dict[str, Any]:
    names = ("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors")
    return {name: one.extra.get(name) for name in names}
