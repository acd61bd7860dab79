"""Jobs, outcomes and errors as the JSON that the store keeps, and back."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from PIL import Image

from sd_cloud import errors
from sd_cloud.errors import ServiceError
from sd_cloud.job import Job, Outcome, Picture, Progress, Reply, Target

# In ASCII: a text may hold half of a surrogate pair or a NUL, which no database keeps as it is.

#: Texts longer than this (pictures as base64) are not kept with a task that is over.
KEPT_TEXT = 4096


class NotKeepable(TypeError):
    """A job holds something that JSON does not have: a bug of the dialect that made it."""


def job_to_text(job: Job) -> str:
    try:
        return json.dumps({one.name: _plain(getattr(job, one.name)) for one in fields(job)})
    except TypeError as error:
        raise NotKeepable(f"job {job.id}: {error}") from error


def job_from_text(text: str) -> Job:
    given = json.loads(text)
    known = {one.name for one in fields(Job)}
    given = {name: value for name, value in given.items() if name in known}  # an older version's own
    if given.get("target") is not None:
        given["target"] = Target(**given["target"])
    return Job(**given)


def without_pictures(text: str) -> str:
    """A job's text once it is over: the request as it was, without its pictures and options."""
    given = json.loads(text)
    given["options"] = {}
    given["payload"] = _shortened(given["payload"])
    return json.dumps(given)


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > KEPT_TEXT:
        return f"({len(value)} characters, not kept)"
    if isinstance(value, dict):
        return {name: _shortened(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Target):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else value


# -- outcomes -------------------------------------------------------------------------------------

_PICTURE = tuple(one.name for one in fields(Picture) if one.name != "image")


def outcome_to_text(outcome: Outcome) -> tuple[str, bytes | None]:
    """The outcome without its pixels, and the body of its reply, which may be large."""
    reply = outcome.reply
    text = json.dumps(
        {
            "pictures": [{name: getattr(p, name) for name in _PICTURE} for p in outcome.pictures],
            "info": dict(outcome.info),
            "interrupted": outcome.interrupted,
            "seconds": outcome.seconds,
            "reply": {"status": reply.status, "headers": dict(reply.headers)} if reply else None,
        },
        default=str,
    )
    return text, reply.body if reply else None


def outcome_from_text(text: str, body: bytes | None) -> Outcome:
    given = json.loads(text)
    reply = given["reply"]
    return Outcome(
        pictures=tuple(Picture(None, **one) for one in given["pictures"]),
        info=given["info"],
        interrupted=given["interrupted"],
        seconds=given["seconds"],
        reply=Reply(reply["status"], reply["headers"], body or b"") if reply else None,
    )


# -- progress -------------------------------------------------------------------------------------

_PROGRESS = tuple(one.name for one in fields(Progress) if one.name != "preview")


def progress_to(progress: Progress) -> tuple[str, bytes | None]:
    """The numbers, and the preview as PNG."""
    preview = None
    if progress.preview is not None:
        data = io.BytesIO()
        progress.preview.save(data, "PNG", compress_level=1)
        preview = data.getvalue()
    return json.dumps({name: getattr(progress, name) for name in _PROGRESS}), preview


def progress_from(text: str, preview: bytes | None) -> Progress:
    image = Image.open(io.BytesIO(preview)) if preview else None
    return Progress(**json.loads(text), preview=image)


# -- errors ---------------------------------------------------------------------------------------


def error_to_text(error: ServiceError) -> str:
    return json.dumps({"code": error.code, "message": error.args[0], "field": error.field})


def error_from_text(text: str) -> ServiceError:
    """The error again, by its code: the classes may move, the codes are part of the wire format."""
    given = json.loads(text)
    kind = _kinds().get(given["code"], errors.EngineFailed)
    return kind(given["message"], field=given["field"])


def _kinds() -> dict[str, type[ServiceError]]:
    found: dict[str, type[ServiceError]] = {}
    for kind in _below(ServiceError):
        if kind.__module__ == errors.__name__:
            found.setdefault(kind.code, kind)
    return found


def _below(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
