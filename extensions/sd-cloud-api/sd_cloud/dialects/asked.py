"""What every way of asking shares: who asks, native jobs, fresh links, one error place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request

from sd_cloud.access import Access
from sd_cloud.dialects import eas
from sd_cloud.dialects.sdapi_checks import check_upscaler, check_values
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job, Kind, Outcome, Picture
from sd_cloud.oss import SCHEME, Oss, OssAddress
from sd_cloud.outputs.links import Links
from sd_cloud.roots import OWNERS_FOLDER
from sd_cloud.service import Service
from sd_cloud.settings import Settings

NATIVE_PATHS: Mapping[Kind, str] = {
    "txt2img": "/sdapi/v1/txt2img",
    "img2img": "/sdapi/v1/img2img",
    "extras": "/sdapi/v1/extra-single-image",
}
LONGEST_LINK = 2048


@dataclass(frozen=True)
class Seam:
    """What a dialect hangs on: the app, the service behind it and its rules."""

    app: FastAPI
    service: Service
    settings: Settings
    access: Access
    native_job: eas.NativeJob

    async def native(self, kind: Kind, body: Mapping[str, Any], *, owner: str) -> Job:
        """The job of a native payload, checked and filled in by the app's own native route.

        Raises BadRequest naming the field, and what ``native_job`` raises.
        """
        route = self.route(NATIVE_PATHS[kind])
        payload = eas.validated(dict(body), route) if route is not None else dict(body)
        if kind != "extras":
            return await self.native_job(kind, payload, owner=owner)
        check_values(payload)
        for field in ("upscaler_1", "upscaler_2"):
            if payload.get(field, "None") != "None":
                check_upscaler(payload[field], self.service.catalogue(), field)
        return Job("extras", payload, owner=owner)

    def route(self, path: str, method: str = "POST") -> APIRoute | None:
        for one in self.app.router.routes:
            if isinstance(one, APIRoute) and one.path == path and method in (one.methods or ()):
                return one
        return None


class FreshLinks:
    """Links to a task's pictures, signed when they are asked for."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.link_seconds
        self._links = Links(settings)
        self._oss = Oss(settings.oss)

    async def of(self, outcome: Outcome, owner: str) -> Outcome:
        """The outcome with the links of its saved pictures made anew."""
        if not any(picture.path for picture in outcome.pictures):
            return outcome
        return await asyncio.to_thread(self._relinked, outcome, owner)

    def _relinked(self, outcome: Outcome, owner: str) -> Outcome:
        pictures = [replace(p, link=self._link(p, owner)) if p.path else p for p in outcome.pictures]
        return replace(outcome, pictures=tuple(pictures))

    def _link(self, picture: Picture, owner: str) -> str:
        assert picture.path is not None
        if picture.path.startswith(SCHEME):
            return self._oss.sign(OssAddress.parse(picture.path, field="save_dir"), self._seconds)
        return self._links.sign(Path(picture.path), owner)


def stored_key(path: str) -> str:
    """``images/<owner>/<task id>_<n>.png`` of a task's picture; other pictures by their whole path."""
    parts = path.split("/")
    return "/".join(parts[-3:]) if len(parts) >= 3 and parts[-3] == OWNERS_FOLDER else path


async def json_body(request: Request) -> dict[str, Any]:
    """Raises BadRequest for a body that is not a JSON object."""
    body = await request.body()
    try:
        given = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}", field="body") from None
    if not isinstance(given, dict):
        raise BadRequest("the body is not a JSON object", field="body")
    return given


def count_in(request: Request, name: str, default: int, most: int = 10**9) -> int:
    """A number from 0 to ``most`` of the query. Raises BadRequest."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text[:12]) <= most:
        raise BadRequest(f"expected a number from 0 to {most}, got {text[:20]!r}", field=name)
    return int(text)


def callback_in(given: Any, field: str = "callback_url") -> str | None:
    """Whom to tell of the task's end. Raises BadRequest for what is no link."""
    if given in (None, ""):
        return None
    if not isinstance(given, str) or not given.lower().startswith(("http://", "https://")):
        raise BadRequest("expected an http(s) link", field=field)
    if len(given) > LONGEST_LINK:
        raise BadRequest(f"a link has at most {LONGEST_LINK} characters", field=field)
    return given


def callback_beside(tags: Mapping[str, str], body: bytes) -> str | None:
    """The same of a queued request: its tag ``callback_url``, or that field of its body."""
    if "callback_url" in tags:
        return callback_in(tags["callback_url"])
    if b'"callback_url"' not in body:
        return None
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None  # its route says what is wrong with it
    return callback_in(given.get("callback_url")) if isinstance(given, dict) else None
