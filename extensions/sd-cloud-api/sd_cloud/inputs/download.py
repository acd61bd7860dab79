"""A large file from a link to the disk, through the same guard as pictures."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.inputs.fetch import following, in_time
from sd_cloud.settings import FetchLimits


async def download(
    link: str, file: Path, *, limit_bytes: int, policy: AddressPolicy, field: str, seconds: float
) -> None:
    """GET a link into ``file``, piece by piece; redirects are checked as in `fetch`.

    Raises InputRefused when the link, its address or its size is not allowed, InputUnreachable
    when the other side fails or takes longer than ``seconds``. A file begun may be left behind.
    """

    async def write() -> None:
        async with following(link, redirects=FetchLimits().redirects, policy=policy, field=field) as answer:
            with file.open("wb") as target:
                async for chunk in answer.chunks(limit_bytes, field=field):
                    await asyncio.to_thread(target.write, chunk)

    await in_time(write(), link, seconds, field=field)
