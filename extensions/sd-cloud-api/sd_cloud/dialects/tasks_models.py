"""``/models`` of the serverless task API: list, register, update and delete model files.

A model's ``ossPath`` is ``oss://bucket/key`` (below ``--oss-allow``), an http(s) link, or a path of a
file that is in the type's folder already. ``etag``, where given, is checked: 32 hexadecimal digits
are an MD5 (what OSS gives an object uploaded in one piece), 64 a SHA-256.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd_cloud import errors
from sd_cloud.dialects.asked import Seam, json_body
from sd_cloud.dialects.routes import router_of
from sd_cloud.dialects.tasks import refusal, wants_async
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.inputs.download import download
from sd_cloud.oss import SCHEME, Oss
from sd_cloud.settings import ModelFolders
from sd_cloud.store.models import ModelRow, ModelTable

log = logging.getLogger(__name__)

#: The type that is answered -> its folder, and what else it may be called in a request.
TYPES = {
    "stableDiffusion": ("checkpoints", ("diffusion", "checkpoint", "stablediffusion", "sd")),
    "sdVae": ("vaes", ("vae", "sdvae")),
    "lora": ("loras", ("lyco", "lycoris")),
    "controlNet": ("controlnets", ("controlnet",)),
}
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LIMIT_MODEL_BYTES = 64 * 1024**3
DOWNLOAD_SECONDS = 6 * 3600.0
HASH_CHUNK_BYTES = 1024 * 1024
_ETAG = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}")


def router(seam: Seam) -> APIRouter:
    models = _Models(seam)
    return router_of(
        refusal,
        ("GET", "/models", models.listed),
        ("POST", "/models", models.register),
        ("GET", "/models/{model_name:path}", models.one),
        ("PUT", "/models/{model_name:path}", models.change),
        ("DELETE", "/models/{model_name:path}", models.delete),
    )


class _Models:
    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._table = ModelTable(seam.service.store.database)
        self._oss = Oss(seam.settings.oss)
        self._policy = AddressPolicy.listing(seam.settings.image_link_allow)
        self._background: set[asyncio.Task[Any]] = set()

    async def listed(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        return JSONResponse(list((await self._all()).values()))

    async def one(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        return JSONResponse(await self._named(request.path_params["model_name"]))

    async def register(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        body = await json_body(request)
        return await self._take(request, body)

    async def change(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        known = await self._named(request.path_params["model_name"])
        body = await json_body(request)
        if body.get("name", known["name"]) != known["name"]:
            raise errors.BadRequest("a model keeps its name; register another one", field="name")
        return await self._take(request, {**known, "etag": None, **body, "status": None})

    async def delete(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        name = request.path_params["model_name"]
        await self._named(name)
        row = await self._table.get(name)
        if row is None:
            raise errors.BadRequest(
                f"{name} was put into the models folder by hand; take it out there", field="model_name"
            )
        if row.filename:
            await asyncio.to_thread(Path(row.filename).unlink, missing_ok=True)
            await self._seam.service.engine.refresh()
        row = await self._table.put(replace(row, status="deleted", filename=None))
        return JSONResponse(_attributes(row))

    async def _named(self, name: str) -> dict[str, Any]:
        found = (await self._all()).get(name)
        if found is None:
            raise errors.CheckpointNotFound(f"no model {name!r}", field="model_name")
        return found

    async def _all(self) -> dict[str, dict[str, Any]]:
        """By name: what the engine finds, and over it what was registered."""
        service = self._seam.service
        catalogue = await asyncio.to_thread(service.catalogue)
        found: dict[str, dict[str, Any]] = {}
        for one in catalogue.checkpoints:
            found[one.name] = _found("stableDiffusion", one.name, one.filename, one.sha256 or one.hash)
            if one.name == service.loaded:
                found[one.name]["status"] = "loaded"
        for kind, files in (
            ("sdVae", catalogue.vaes), ("lora", catalogue.loras), ("controlNet", catalogue.controlnets),
        ):  # fmt: skip
            for file in files:
                found.setdefault(file.name, _found(kind, file.name, file.filename, None))
        for row in await self._table.all():
            if row.status == "deleted":
                continue
            attributes = _attributes(row)
            if row.name in found and row.status != "registering":
                attributes["status"] = found[row.name]["status"]
            found[row.name] = attributes
        return found

    # -- registering ---------------------------------------------------------------------------

    async def _take(self, request: Request, body: dict[str, Any]) -> Response:
        kind, name, source, etag = _checked(body)
        folder = folder_of(self._seam.settings.folders, kind)
        row = ModelRow(name, kind, source, etag or "", "registering")
        await self._table.put(row)
        work = self._installed(row, folder, etag)
        if wants_async(request):
            task = asyncio.create_task(self._quietly(work, row))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            return JSONResponse(_attributes(row))
        try:
            return JSONResponse(_attributes(await work))
        except errors.ServiceError as error:
            await self._table.put(replace(row, status="deleted", message=str(error)))
            raise

    async def _quietly(self, work: Any, row: ModelRow) -> None:
        try:
            await work
        except Exception as error:
            log.exception("registering %s failed", row.name)
            await self._table.put(replace(row, status="deleted", message=str(error)))

    async def _installed(self, row: ModelRow, folder: Path, etag: str | None) -> ModelRow:
        place = folder / row.name
        if row.oss_path.startswith((SCHEME, "http://", "https://")):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            partial = folder / f".{row.name}-{secrets.token_hex(4)}.part"
            try:
                await self._fetch(row.oss_path, partial)
                digest = await asyncio.to_thread(_matching, partial, etag)
                await asyncio.to_thread(partial.replace, place)
            finally:
                await asyncio.to_thread(partial.unlink, missing_ok=True)
        else:
            place = await asyncio.to_thread(_in_folder, row.oss_path, folder)
            digest = await asyncio.to_thread(_matching, place, etag)
        await self._seam.service.engine.refresh()
        return await self._table.put(
            replace(row, status="unloaded", filename=str(place), etag=etag or digest)
        )

    async def _fetch(self, source: str, file: Path) -> None:
        if source.startswith(SCHEME):
            address = self._oss.allowed(source, field="ossPath")
            await asyncio.to_thread(
                self._oss.get_file, address, file, limit_bytes=LIMIT_MODEL_BYTES, field="ossPath"
            )
            return
        await download(
            source, file, limit_bytes=LIMIT_MODEL_BYTES, policy=self._policy, field="ossPath",
            seconds=DOWNLOAD_SECONDS,
        )  # fmt: skip


def _checked(body: dict[str, Any]) -> tuple[str, str, str, str | None]:
    """Type, name, source and etag. Raises BadRequest."""
    for name in ("type", "name", "ossPath"):
        if not isinstance(body.get(name), str) or not body[name]:
            raise errors.BadRequest("this field is required, as a string", field=name)
    kind = next(
        (t for t, (_, others) in TYPES.items() if body["type"] == t or body["type"].lower() in others), None
    )
    if kind is None:
        raise errors.BadRequest(f"{body['type']!r} is not one of {', '.join(TYPES)}", field="type")
    name = body["name"]
    if not name.endswith(ENDINGS):
        ending = Path(body["ossPath"].split("?", 1)[0]).suffix
        name += ending if ending in ENDINGS else ".safetensors"
    if re.search(r"[/\\\x00-\x1f]", name) or name.startswith("."):
        raise errors.BadRequest(f"{body['name']!r} is not a plain file name", field="name")
    etag = body.get("etag") or None
    if etag is not None and not (isinstance(etag, str) and _ETAG.fullmatch(etag.strip('"'))):
        raise errors.BadRequest("expected an MD5 (32) or SHA-256 (64 hexadecimal digits)", field="etag")
    return kind, name, body["ossPath"], etag.strip('"').lower() if etag else None


def folder_of(folders: ModelFolders, kind: str) -> Path:
    paths: tuple[Path, ...] = getattr(folders, TYPES[kind][0])
    return paths[0]


def _in_folder(text: str, folder: Path) -> Path:
    place = (folder / text).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise errors.InputRefused(
            f"{text} is outside {folder}; give oss://, a link, or a file in that folder", field="ossPath"
        )
    if not place.is_file():
        raise errors.InputRefused(f"{text} is not a file of {folder}", field="ossPath")
    return place


def _matching(file: Path, etag: str | None) -> str:
    """The file's SHA-256, or the digest that ``etag`` is. Raises InputRefused when it is another one."""
    made = hashlib.new("md5" if etag and len(etag) == 32 else "sha256", usedforsecurity=False)
    with file.open("rb") as data:
        while chunk := data.read(HASH_CHUNK_BYTES):
            made.update(chunk)
    if etag and made.hexdigest() != etag:
        raise errors.InputRefused(f"the file's digest is {made.hexdigest()}, not {etag}", field="etag")
    return made.hexdigest()


def _attributes(row: ModelRow) -> dict[str, Any]:
    """``ModelAttributes``."""
    return {
        "type": row.type,
        "name": row.name,
        "ossPath": row.oss_path,
        "etag": row.etag,
        "status": row.status,
        "registeredTime": _time(row.registered),
        "lastModificationTime": _time(row.modified),
        **({"message": row.message} if row.message else {}),
    }


def _found(kind: str, name: str, filename: str, etag: str | None) -> dict[str, Any]:
    try:
        stat = Path(filename).stat()
        moment, size = stat.st_mtime, stat.st_size
    except OSError:
        moment, size = 0.0, 0
    # A file nobody has hashed yet is known by its size and time.
    own = hashlib.sha1(f"{name} {size} {moment}".encode(), usedforsecurity=False).hexdigest()
    row = ModelRow(name, kind, filename, etag or own, "unloaded", registered=moment, modified=moment)
    return _attributes(row)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
