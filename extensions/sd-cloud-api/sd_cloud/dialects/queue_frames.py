"""Messages of the EAS queue on the wire: protobuf, JSON or raw, as ``Accept`` asks.

The protobuf messages are built from their description at run time: generated code of one protobuf
release does not work with another, and the webui pins 3.20.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from sd_cloud.store.queues import Message

PROTOBUF = "application/vnd.google.protobuf"
PACKAGE = "streaming"


@lru_cache(maxsize=1)
def _types() -> tuple[Any, Any]:
    """``DataFrameProto`` and ``DataFrameListProto``."""
    file = descriptor_pb2.FileDescriptorProto(
        name="sd_cloud/queue_frames.proto", package=PACKAGE, syntax="proto3"
    )
    field = descriptor_pb2.FieldDescriptorProto
    frame = file.message_type.add(name="DataFrameProto")
    entry = frame.nested_type.add(name="TagsEntry")
    entry.options.map_entry = True
    for number, name in enumerate(("key", "value"), 1):
        entry.field.add(name=name, number=number, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    frame.field.add(name="index", number=1, type=field.TYPE_UINT64, label=field.LABEL_OPTIONAL)
    frame.field.add(
        name="tags", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
        type_name=f".{PACKAGE}.DataFrameProto.TagsEntry",
    )  # fmt: skip
    frame.field.add(name="data", number=3, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    frame.field.add(name="message", number=4, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    frames = file.message_type.add(name="DataFrameListProto")
    frames.field.add(
        name="index", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
        type_name=f".{PACKAGE}.DataFrameProto",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    names = ("DataFrameProto", "DataFrameListProto")
    described = [pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in names]
    if hasattr(message_factory, "GetMessageClass"):
        made = [message_factory.GetMessageClass(one) for one in described]
    else:
        factory: Any = message_factory.MessageFactory(pool)  # before protobuf 4.22
        made = [factory.GetPrototype(one) for one in described]
    return made[0], made[1]


def _fill(frame: Any, message: Message) -> None:
    frame.index = message.index
    frame.data = message.data
    frame.message = message.message
    for name, value in message.tags.items():
        frame.tags[name] = value


def frame_bytes(message: Message) -> bytes:
    frame = _types()[0]()
    _fill(frame, message)
    return bytes(frame.SerializeToString())


def frames_bytes(messages: Sequence[Message]) -> bytes:
    frames = _types()[1]()
    for message in messages:
        _fill(frames.index.add(), message)
    return bytes(frames.SerializeToString())


def frames_of(data: bytes) -> list[Message]:
    """Raises ValueError for what is no list of frames."""
    frames = _types()[1]()
    frames.ParseFromString(data)
    return [Message(one.index, dict(one.tags), bytes(one.data), one.message) for one in frames.index]


def frame_json(message: Message) -> dict[str, Any]:
    """``data`` is base64, as protobuf's own JSON form has bytes."""
    return {
        "index": message.index,
        "tags": dict(message.tags),
        "data": base64.b64encode(message.data).decode("ascii"),
        "message": message.message,
    }


def json_text(message: Message) -> str:
    return json.dumps(frame_json(message), ensure_ascii=False)
