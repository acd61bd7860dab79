"""What a queue of messages is, and the words for it.

A queue is a name and an owner: nobody sees another one's messages. A message is delivered to one
consumer of each group that watches, and is gone once all of these groups have committed it. What a
consumer has not committed when its connection ends goes to another one of its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sd_cloud.errors import BadRequest


@dataclass(frozen=True)
class Queue:
    name: str
    owner: str


@dataclass(frozen=True)
class Message:
    """``index`` grows with each message of the service; ``task_id`` is the task of an input message."""

    index: int
    tags: Mapping[str, str]
    data: bytes
    message: str = ""
    task_id: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class Consumer:
    """One watching connection. ``window``: messages it may hold uncommitted."""

    connection: str
    queue: Queue
    group: str
    uid: str
    window: int
    auto_commit: bool = False
    first_index: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Watching:
    """A consumer as the attributes of its queue tell it. ``last``: the newest message it holds, or 0."""

    uid: str
    group: str
    window: int
    auto_commit: bool
    uncommitted: int
    last: int
    seconds: float


@dataclass(frozen=True)
class Extent:
    """How many messages a queue has, their first and last index (0: none), and whether it has ended."""

    length: int
    first: int
    last: int
    ended: bool


class QueueEnded(BadRequest):
    """The queue takes no more messages."""

    code, http_status = "queue_ended", 409


class NotWatching(Exception):
    """A consumer that has not arrived, or has left, gets no messages."""
