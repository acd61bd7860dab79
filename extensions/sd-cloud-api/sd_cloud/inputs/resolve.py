"""Every picture that a job names, wherever it is, into checked base64 in its place."""

from __future__ import annotations

import asyncio
import base64
import copy
import re
from dataclasses import replace
from typing import Any

from sd_cloud.errors import InputRefused, InputUnreachable
from sd_cloud.inputs import guard
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.inputs.fetch import check_address, fetch
from sd_cloud.inputs.pictures import check_picture, decoded, is_bare_picture
from sd_cloud.inputs.units import Slot, picture_slots, take_links
from sd_cloud.job import Job
from sd_cloud.oss import SCHEME, Oss
from sd_cloud.roots import Roots
from sd_cloud.settings import MIB, Settings

#: What all pictures of one job may come to, as they are sent.
LIMIT_JOB_BYTES = 256 * MIB
#: Pictures of one job that are fetched at once.
FETCHES_AT_ONCE = 4
#: Pictures decoded at once, of all jobs: each may take pixels x 4 bytes while it is.
DECODES_AT_ONCE = 2

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


class Inputs:
    """The pictures and the paths of jobs, by one service's settings."""

    def __init__(self, settings: Settings, *, policy: AddressPolicy | None = None) -> None:
        self._settings = settings
        self._limits = settings.fetch
        self._policy = policy or AddressPolicy.listing(settings.image_link_allow)
        self._roots = Roots.of(settings)
        self._oss = Oss(settings.oss)
        self._decoding = asyncio.Semaphore(DECODES_AT_ONCE)

    def check_paths(self, job: Job) -> None:
        """Refuse a job that names a path it may not (see :mod:`sd_cloud.inputs.guard`)."""
        guard.check_paths(job, self._roots, self._oss, self._settings.data_dir)

    async def check_link(self, link: str, *, field: str) -> None:
        """Raises InputRefused for a link that leads where none may. One to a host that has no
        address at this moment passes."""
        try:
            await check_address(link, policy=self._policy, field=field)
        except InputUnreachable:
            pass

    async def resolve(self, job: Job) -> Job:
        """The job with each picture of its payload as plain base64 of the original, checked bytes.

        Pictures may be given as base64, ``data:`` URLs, http(s) links, ``oss://`` addresses and
        paths. Raises BadRequest, InputRefused or InputUnreachable, naming the field.
        """
        if job.kind == "call":
            return job
        payload: dict[str, Any] = copy.deepcopy(dict(job.payload))
        guard.settle_paths(payload, job, self._roots, self._settings.data_dir)
        told_as = take_links(payload)
        slots = [
            replace(slot, field=told_as.get(slot.field, slot.field))
            for slot in picture_slots(job.kind, payload)
        ]
        if slots:
            await self._fill(slots, job.owner)
        return job.with_payload(payload)

    async def _fill(self, slots: list[Slot], owner: str) -> None:
        budget = _Budget(LIMIT_JOB_BYTES)
        turn = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def fill(slot: Slot) -> None:
            async with turn:
                slot.fill(await self._taken(slot.text, slot.field, owner, budget))

        tasks = [asyncio.create_task(fill(slot)) for slot in slots]
        try:
            await asyncio.gather(*tasks)
        finally:  # the first refusal ends the job: nothing more is fetched for it
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _taken(self, text: str, field: str, owner: str, budget: _Budget) -> str:
        """The picture that a text stands for, as checked base64."""
        text = text.strip()
        scheme = _SCHEME.match(text)
        kind = scheme[1].lower() if scheme else ""
        if kind in ("http", "https"):
            data = await fetch(text, limits=self._limits, policy=self._policy, field=field)
        elif text.startswith(SCHEME):
            address = self._oss.allowed(text, field=field)
            limit = self._limits.limit_bytes
            data = await asyncio.to_thread(self._oss.get, address, limit_bytes=limit, field=field)
        elif kind and kind != "data":
            raise InputRefused(
                f"{kind}: is not taken; give base64, a data: URL, an http(s) link or oss://", field=field
            )
        elif not kind and _is_path(text):
            data = await asyncio.to_thread(self._file, text, field, owner)
        else:
            return await self._base64(text, field, budget)
        budget.spend(len(data), field)
        return await self._checked(data, field)

    async def _base64(self, text: str, field: str, budget: _Budget) -> str:
        def work() -> str:
            bare, data = decoded(text, limits=self._limits, field=field)
            check_picture(data, limits=self._limits, field=field)
            return bare

        budget.spend(len(text) * 3 // 4, field)
        async with self._decoding:
            return await asyncio.to_thread(work)

    async def _checked(self, data: bytes, field: str) -> str:
        def work() -> str:
            check_picture(data, limits=self._limits, field=field)
            return base64.b64encode(data).decode("ascii")

        async with self._decoding:
            return await asyncio.to_thread(work)

    def _file(self, text: str, field: str, owner: str) -> bytes:
        place = self._roots.readable(text, field=field, owner=owner)
        if not place.is_file():
            raise InputRefused(f"{text} is not a file", field=field)
        limit = self._limits.limit_bytes
        try:
            with place.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise InputRefused(f"{text} cannot be read: {error.strerror}", field=field) from error
        if len(data) > limit:
            raise InputRefused(f"{text} is above the limit of {limit} bytes", field=field)
        return data


class _Budget:
    """Bytes that the pictures of one job may still take together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._spent_bytes = 0

    def spend(self, count_bytes: int, field: str) -> None:
        self._spent_bytes += count_bytes
        if self._spent_bytes > self._limit_bytes:
            raise InputRefused(
                f"the request's pictures come to more than {self._limit_bytes} bytes together", field=field
            )


def _is_path(text: str) -> bool:
    """Base64 has no dot, and only that of a JPEG begins with a slash."""
    if len(text) > guard.LIMIT_PATH_CHARS or "\n" in text or is_bare_picture(text):
        return False
    return "." in text or text.startswith("/")
