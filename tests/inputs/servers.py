"""Small HTTP servers for the fetcher: each connection is answered by a coroutine of the test."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Script = Callable[["Conversation"], Awaitable[None]]


@dataclass
class Conversation:
    """One request as it came in, and the way to answer it."""

    line: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]

    async def send(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X"] + [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        await self.send("\r\n".join(lines).encode() + body)


@dataclass
class Server:
    port: int
    seen: list[Conversation] = field(default_factory=list)

    def url(self, host: str = "pictures.test", path: str = "/a.png", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def serving(
    script: Script, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serve on ``host`` until the block ends; every conversation is kept in ``seen``."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v for k, _, v in (one.partition(": ") for one in head[1:] if one)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            conversation = Conversation(head[0], headers, body, writer)
            server.seen.append(conversation)
            await script(conversation)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, which is what some of these tests are about
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, host, port, ssl=tls)
    server = Server(listening.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
