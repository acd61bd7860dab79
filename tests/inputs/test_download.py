"""Large files from a link to the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sd_cloud.errors import InputRefused, InputUnreachable
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.inputs.download import download
from tests.inputs.servers import Conversation, serving


async def resolve(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


POLICY = AddressPolicy.listing(["models.test"], resolve=resolve)


async def take(link: str, file: Path, limit_bytes: int = 1000, policy: AddressPolicy = POLICY) -> None:
    await download(link, file, limit_bytes=limit_bytes, policy=policy, field="url", seconds=10)


async def with_model(conversation: Conversation) -> None:
    if conversation.path == "/moved":
        await conversation.answer(302, Location="/model")
    else:
        await conversation.answer(body=b"m" * 1000)


async def test_a_file_is_written_piece_by_piece_behind_redirects(tmp_path: Path) -> None:
    async with serving(with_model) as server:
        await take(server.url("models.test", "/moved"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"m" * 1000


async def test_it_passes_the_same_guard_and_limits(tmp_path: Path) -> None:
    async with serving(with_model) as server:
        with pytest.raises(InputRefused, match=r"^url: .* limit of 999 bytes"):
            await take(server.url("models.test"), tmp_path / "a", 999)
        with pytest.raises(InputRefused, match="loopback"):
            await take(server.url("other.test"), tmp_path / "b", policy=AddressPolicy(resolve=resolve))
    async with serving(lambda conversation: conversation.answer(404)) as server:
        with pytest.raises(InputUnreachable, match="answered 404"):
            await take(server.url("models.test"), tmp_path / "c")
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
