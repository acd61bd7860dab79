"""The standalone app on a port of its own, for clients that speak to a server and to nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import pytest
import uvicorn
from fastapi import FastAPI

if pydantic.VERSION.startswith("1."):
    pytest.skip("the standalone host needs the current stack", allow_module_level=True)

from sd_cloud.host.app import build
from sd_cloud.service import Service
from sd_cloud.settings import Settings, settings_below
from tests.dialects.sdapi_world import PaintEngineWithNames


@dataclass
class Served:
    url: str
    app: FastAPI
    engine: PaintEngineWithNames
    settings: Settings

    @property
    def service(self) -> Service:
        service: Service = self.app.state.sd_cloud
        return service


@contextmanager
def served(data_dir: Path, **changes: Any) -> Iterator[Served]:
    """The app with an engine that paints, on a free port of this machine."""
    # With the protocol named, as the launcher's: else every answer waits 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = settings_below(data_dir, port=port, **changes)
    engine = PaintEngineWithNames()
    made: list[tuple[FastAPI, uvicorn.Server]] = []

    async def serve() -> None:
        # Built on its own loop: outside of one, what the pages are made with opens loops of its own.
        app = build(settings, engine=engine)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        made.append((app, server))
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while thread.is_alive() and not (made and made[0][1].started):
        time.sleep(0.01)
    [(app, server)] = made
    try:
        yield Served(f"http://127.0.0.1:{port}", app, engine, settings)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
