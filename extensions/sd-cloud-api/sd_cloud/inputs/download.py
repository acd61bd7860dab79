"""A large file from a link to the disk, through the same guard as pictures."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sd_cloud.errors import InputRefused, InputUnreachable
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.inputs.fetch import _REDIRECTS, _checked_url, _exchange, _next_url
from sd_cloud.settings import FetchLimits


async def download(
    link: str, file: Path, *, limit_bytes: int, policy: AddressPolicy, field: str, seconds: float
) -> None:
    """GET a link into ``file``, piece by piece; redirects are checked as in `fetch`.

    Raises InputRefused when the link, its address or its size is not allowed, InputUnreachable
    when the other side fails or takes longer than ``seconds``. A file begun may be left behind.
    """

    async def follow() -> None:
        url = _checked_url(link, field=field)
        for _ in range(FetchLimits().redirects + 1):
            async with _exchange("GET", url, policy, field=field, certificates=None) as response:
                if response.status in _REDIRECTS:
                    url = _next_url(url, response, field=field)
                    continue
                if not 200 <= response.status < 300:
                    raise InputUnreachable(f"{url.host} answered {response.status}", field=field)
                received = 0
                with file.open("wb") as target:
                    async for chunk in response.aiter_stream():
                        received += len(chunk)
                        if received > limit_bytes:
                            raise InputRefused(
                                f"{url.host} sends more than the limit of {limit_bytes} bytes", field=field
                            )
                        await asyncio.to_thread(target.write, chunk)
                return
        raise InputRefused("too many redirects", field=field)

    try:
        await asyncio.wait_for(follow(), seconds)
    except asyncio.TimeoutError as error:
        raise InputUnreachable(f"the link took longer than {seconds:g} seconds", field=field) from error
