"""What a request to the EAS queue asks for: the queue, the route, the tags, the identity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from sd_cloud.errors import BadRequest, TaskNotFound
from sd_cloud.settings import Settings
from sd_cloud.store.queues import Queue

USER_HEADER = "X-EAS-QueueService-Redis-Uid"
GROUP_HEADER = "X-EAS-QueueService-Redis-Gid"
PRIORITY_HEADER = "X-EAS-QueueService-Priority"
REQUEST_ID_HEADER = "X-Eas-Queueservice-Request-Id"

#: What an input message without a path behind the service's name runs.
DEFAULT_ROUTE = "/sdapi/v1/txt2img"
DEFAULT_GROUP = "eas"
LONGEST_WAIT_SECONDS = 600.0
LARGEST_NUMBER = 2**63 - 1
LIMIT_LENGTH = 10_000
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)?")
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
YES = ("true", "1", "yes", "t")
NO = ("false", "0", "no", "f", "")


@dataclass(frozen=True)
class Place:
    """``route``: what an input message runs; None for the sink."""

    queue: Queue
    route: str | None


def place_of(path: str, settings: Settings, owner: str) -> Place:
    """The queue behind ``/api/predict/``. Raises TaskNotFound for another service's name."""
    name = settings.async_service
    service, _, rest = path.partition("/")
    if service != name:
        raise TaskNotFound(f"there is no queue service {service!r}; this one is {name!r} (--async-service)")
    rest = rest.strip("/")
    if rest == "sink":
        return Place(Queue(sink_of(name), owner), None)
    return Place(Queue(name, owner), f"/{rest}" if rest else DEFAULT_ROUTE)


def sink_of(name: str) -> str:
    return f"{name}/sink"


@dataclass(frozen=True)
class Query:
    """The query parameters: names with a leading underscore are the queue's own, others are tags."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, request: HTTPConnection) -> Query:
        return cls(dict(request.query_params))

    @property
    def tags(self) -> dict[str, str]:
        return {name: value for name, value in self.values.items() if not name.startswith("_")}

    def asks(self, name: str) -> bool:
        """A switch, ``_name_=true``. Raises BadRequest."""
        value = self.values.get(name, "false").strip().lower()
        if value not in (*YES, *NO):
            raise BadRequest(f"{value!r} is neither true nor false", field=name)
        return value in YES

    def number(self, name: str, default: int, *, least: int = 0, most: int = LARGEST_NUMBER) -> int:
        text = self.values.get(name)
        if text is None or text == "":
            return default
        try:
            value = int(text)
        except ValueError:
            raise BadRequest(f"{text!r} is not a whole number", field=name) from None
        if not least <= value <= most:
            raise BadRequest(f"{value} is not between {least} and {most}", field=name)
        return value

    def seconds(self, name: str, default: float) -> float:
        """A duration as Go writes it (``5s``, ``500ms``), or a number of seconds."""
        text = self.values.get(name)
        if text is None or text == "":
            return default
        found = _DURATION.fullmatch(text.strip())
        if found is None:
            raise BadRequest(f"{text!r} is not a duration like 5s or 500ms", field=name)
        return min(float(found[1]) * _UNITS[found[2]], LONGEST_WAIT_SECONDS)

    def indexes(self) -> list[int]:
        """``_indexes_``, comma-separated, or one ``_index_``. Raises BadRequest."""
        name = "_indexes_" if "_indexes_" in self.values else "_index_"
        parts = [part.strip() for part in self.values.get(name, "").split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) <= LARGEST_NUMBER for part in parts):
            raise BadRequest("expected indexes, separated by commas", field=name)
        if len(parts) > LIMIT_LENGTH:
            raise BadRequest(f"at most {LIMIT_LENGTH} at once", field=name)
        return [int(part) for part in parts]


def priority_of(request: HTTPConnection, query: Query) -> int:
    """The Java client sends it both ways, in the query and in the header; the query wins."""
    given = query.number("_priority_", -1)
    if given >= 0:
        return given
    return Query({PRIORITY_HEADER: request.headers.get(PRIORITY_HEADER, "")}).number(PRIORITY_HEADER, 0)


def identity_of(request: HTTPConnection) -> tuple[str, str]:
    """The consumer's group and name."""
    group = request.headers.get(GROUP_HEADER) or DEFAULT_GROUP
    uid = request.headers.get(USER_HEADER) or (request.client.host if request.client else "unknown")
    return group[:255], uid[:255]
