"""``Idempotency-Key``: the same key and request again is the same task, in every dialect.

A caller whose connection broke sends the request again and is told what the first one came to. The key
is its owner's; it is known as long as its task is. A task that failed because the service stopped gives
its key back.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

from PIL import Image
from starlette.requests import Request

from sd_cloud.errors import BadRequest, NotKept
from sd_cloud.job import Job, Outcome, Picture
from sd_cloud.oss import SCHEME
from sd_cloud.service import Service

HEADER = "Idempotency-Key"
LONGEST_KEY = 255


async def idempotency_of(request: Request, body: bytes | None = None) -> tuple[str, str] | None:
    """The caller's key and a fingerprint of the request. Raises BadRequest."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= LONGEST_KEY:
        raise BadRequest(f"a key has 1 to {LONGEST_KEY} characters", field=HEADER)
    told = f"{request.method} {request.url.path}?{request.url.query}\n".encode()
    sent = await request.body() if body is None else body
    return key, await asyncio.to_thread(lambda: hashlib.sha256(told + sent).hexdigest())


async def with_pictures(service: Service, job: Job, request: Request) -> Outcome:
    """Run a job for a caller who is answered with the pictures themselves.

    When the request was sent before and is over, they are read from where they were saved. Raises
    NotKept where they were not.
    """
    outcome = await service.run(job, idempotency=await idempotency_of(request))
    if all(one.image is not None or one.error is not None for one in outcome.pictures):
        return outcome
    return await asyncio.to_thread(_read_again, outcome)


def _read_again(outcome: Outcome) -> Outcome:
    return replace(outcome, pictures=tuple(_read(one) for one in outcome.pictures))


def _read(picture: Picture) -> Picture:
    if picture.image is not None or picture.error is not None:
        return picture
    if picture.path is None:
        raise NotKept(
            "this request was answered before and its pictures were not saved; send it with a new key, or "
            "the first time with save_images: true",
            field=HEADER,
        )
    try:
        if picture.path.startswith(SCHEME):
            raise OSError("it is in a bucket")
        with Image.open(picture.path) as image:
            image.load()
            return replace(picture, image=image.copy())
    except OSError as error:
        raise NotKept(
            f"this request was answered before; its picture {picture.path} can't be read here ({error})",
            field=HEADER,
        ) from None
