"""Native routes about the host itself: options, flags, memory, refreshing, and what it does not do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
from fastapi import APIRouter
from pydantic import BaseModel, create_model
from starlette.responses import Response

from sd_cloud.dialects import sdapi_models as models
from sd_cloud.dialects.sdapi_checks import check_vae, check_values
from sd_cloud.dialects.sdapi_errors import answer
from sd_cloud.dialects.sdapi_models import or_null
from sd_cloud.errors import CheckpointNotFound, NotImplementedHere, ServiceError
from sd_cloud.job import Job
from sd_cloud.service import Service
from sd_cloud.settings import Settings

FLAGS = Path(__file__).with_name("sdapi_flags.json")
_TYPES: Mapping[str, Any] = {
    "boolean": bool,
    "integer": int,
    "string": str,
    "array": list[Any],
    "object": dict,
}


class Options(Protocol):
    """What these routes need of the host's options."""

    defaults: Mapping[str, Any]

    def snapshot(self) -> dict[str, Any]: ...

    def check(self, values: Mapping[str, Any], field: str = "") -> None: ...

    def change(self, values: Mapping[str, Any]) -> None: ...


def add_host_routes(routes: APIRouter, service: Service, options: Options, settings: Settings) -> None:
    host = _Host(service, options, settings)
    add = routes.add_api_route
    add("/options", host.get_config, methods=["GET"], response_model=options_model(options.defaults))
    add("/options", host.set_config, methods=["POST"])
    add("/cmd-flags", host.get_cmd_flags, methods=["GET"], response_model=flags_model(settings))
    add("/memory", host.get_memory, methods=["GET"], response_model=models.MemoryResponse)
    for path, endpoint in (
        ("/refresh-checkpoints", host.refresh_checkpoints),
        ("/refresh-vae", host.refresh_vae),
        ("/refresh-loras", host.refresh_loras),
        ("/refresh-embeddings", host.refresh_embeddings),
        ("/unload-checkpoint", host.unloadapi),
        ("/reload-checkpoint", host.reloadapi),
    ):
        add(path, endpoint, methods=["POST"])
    if settings.api_server_stop:
        for path, endpoint in (
            ("/server-kill", host.kill_webui),
            ("/server-restart", host.restart_webui),
            ("/server-stop", host.stop_webui),
        ):
            add(path, endpoint, methods=["POST"])
    for path, untrained, answers in (
        ("/create/embedding", host.create_embedding, models.CreateResponse),
        ("/create/hypernetwork", host.create_hypernetwork, models.CreateResponse),
        ("/train/embedding", host.train_embedding, models.TrainResponse),
        ("/train/hypernetwork", host.train_hypernetwork, models.TrainResponse),
    ):
        add(path, untrained, methods=["POST"], response_model=answers)


class _Host:
    def __init__(self, service: Service, options: Options, settings: Settings) -> None:
        self._service = service
        self._options = options
        self._settings = settings
        self._flags: dict[str, Any] = flag_values(settings)

    async def get_config(self) -> Response:
        """Every option; the checkpoint by its title, and its hash, as the webui shows the loaded one."""
        shown = self._options.snapshot()
        catalogue = self._service.catalogue()
        wanted = shown["sd_model_checkpoint"]
        found = catalogue.checkpoint(wanted) if wanted else next(iter(catalogue.checkpoints), None)
        if found is not None:
            shown["sd_model_checkpoint"] = found.title
            shown["sd_checkpoint_hash"] = found.sha256 or ""
        return answer(shown)

    async def set_config(self, req: dict[str, Any]) -> Response:
        """Change options. A value that is set already is no change, and so is always allowed."""
        check_values(req)
        self._options.check(req)
        now = self._options.snapshot()
        changes = {name: value for name, value in req.items() if now[name] != value}
        checkpoint = changes.get("sd_model_checkpoint")
        if checkpoint is not None:
            changes["sd_model_checkpoint"] = await self._title(checkpoint)
        check_vae(changes.get("sd_vae"), self._service.catalogue(), "sd_vae")
        self._check_paths(changes)
        await asyncio.to_thread(self._options.change, changes)
        return answer(None)

    def _check_paths(self, changes: Mapping[str, Any]) -> None:
        """The guard of the paths in a request is the guard of the same paths as options."""
        try:
            self._service.inputs.check_paths(Job("txt2img", {"override_settings": changes}))
        except ServiceError as error:
            field = (error.field or "").removeprefix("override_settings.")
            raise type(error)(error.args[0], field=field) from None

    async def _title(self, wanted: str) -> str:
        found = self._service.catalogue().checkpoint(wanted)
        found = found or (await self._service.engine.refresh()).checkpoint(wanted)
        if found is None:
            there = self._service.catalogue()
            names = ", ".join(one.name for one in there.checkpoints) or "none"
            raise CheckpointNotFound(
                f"model {wanted!r} not found; installed: {names}{there.unhashed_remark(wanted)}",
                field="sd_model_checkpoint",
            )
        return found.title

    async def get_cmd_flags(self) -> Response:
        return answer(self._flags)

    async def get_memory(self) -> Response:
        """``ram.used`` is what this service's processes hold, as the webui tells of its own."""
        used, total = await asyncio.to_thread(_resident_bytes), psutil.virtual_memory().total
        ram = {"free": total - used, "used": used, "total": total}
        return answer({"ram": ram, "cuda": dict(await self._service.engine.memory())})

    async def refresh_checkpoints(self) -> Response:
        return await self._refresh()

    async def refresh_vae(self) -> Response:
        return await self._refresh()

    async def refresh_loras(self) -> Response:
        return await self._refresh()

    async def refresh_embeddings(self) -> Response:
        return await self._refresh()

    async def _refresh(self) -> Response:
        await self._service.engine.refresh()
        return answer(None)

    async def unloadapi(self) -> Response:
        await self._service.engine.unload()
        return answer({})

    async def reloadapi(self) -> Response:
        """Nothing to do: every request brings its own checkpoint, and the engine loads that."""
        return answer({})

    async def kill_webui(self) -> Response:
        return self._stop()

    async def stop_webui(self) -> Response:
        return self._stop()

    def _stop(self) -> Response:
        """The orderly way, as for any other who wants this process to end."""
        os.kill(os.getpid(), signal.SIGTERM)
        return answer("Stopping.")

    async def restart_webui(self) -> Response:
        raise _no("way to start itself again: stop it, and let its supervisor start it")

    async def create_embedding(self, args: dict[str, Any]) -> Response:
        raise _no("training: embeddings are made elsewhere and put into embeddings/")

    async def create_hypernetwork(self, args: dict[str, Any]) -> Response:
        raise _no("training: hypernetworks are made elsewhere and put into models/hypernetworks/")

    async def train_embedding(self, args: dict[str, Any]) -> Response:
        raise _no("training: embeddings are made elsewhere and put into embeddings/")

    async def train_hypernetwork(self, args: dict[str, Any]) -> Response:
        raise _no("training: hypernetworks are made elsewhere and put into models/hypernetworks/")


def _resident_bytes() -> int:
    """Of this process and those it started, the engine's above all."""
    own = psutil.Process()
    used = int(own.memory_info().rss)
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended, and holds nothing
            used += int(child.memory_info().rss)
    return used


def _no(what: str) -> NotImplementedHere:
    return NotImplementedHere(f"this service has no {what}")


# -- models of the OpenAPI file ----------------------------------------------------------------------


def options_model(defaults: Mapping[str, Any]) -> type[BaseModel]:
    """The model ``Options``, typed as the webui types it: by the default, where that is not empty."""
    fields: dict[str, Any] = {name: (_option_type(value), value) for name, value in defaults.items()}
    return create_model("Options", __config__=models.NO_NAMESPACES, **fields)


def _option_type(default: Any) -> Any:
    if not default:
        return Any
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        return or_null(float)
    return or_null(list[Any] if isinstance(default, list) else type(default))


def _flag_table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(FLAGS.read_text())
    return table


def flags_model(settings: Settings) -> type[BaseModel]:
    """The model ``Flags``; its defaults name this service's own folders, as the webui's name its own."""
    fields: dict[str, Any] = {
        name: (or_null(_TYPES[flag["type"]]), _placed(flag["default"], settings))
        for name, flag in _flag_table().items()
    }
    return create_model("Flags", __config__=models.NO_NAMESPACES, **fields)


def flag_values(settings: Settings) -> dict[str, Any]:
    """Every flag of the webui, as this service was started; in the types its OpenAPI file gives them."""
    given = dict(settings.flags)
    return {
        name: _flag_value(given.get(name, _placed(flag["default"], settings)), flag["type"])
        for name, flag in _flag_table().items()
    }


def _placed(default: Any, settings: Settings) -> Any:
    if isinstance(default, list):
        return [_placed(one, settings) for one in default]
    return default.replace("{data_dir}", str(settings.data_dir)) if isinstance(default, str) else default


def _flag_value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "array":
        return [str(one) for one in value]
    return str(value) if kind == "string" else value
