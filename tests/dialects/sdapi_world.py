"""The standalone app with an engine that paints flat colours."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pydantic
import pytest
from fastapi import FastAPI
from PIL import Image

if pydantic.VERSION.startswith("1."):
    pytest.skip("the standalone host needs the current stack", allow_module_level=True)

from sd_cloud.engines.base import Catalogue, ModelFile, Report
from sd_cloud.engines.diffusion.catalogue_samplers import SAMPLERS, SCHEDULERS
from sd_cloud.engines.diffusion.scripts.forms import FORMS
from sd_cloud.host.app import build
from sd_cloud.job import Job, Outcome
from sd_cloud.service import Service
from sd_cloud.settings import Settings, settings_below
from tests.fakes import CATALOGUE, PaintEngine

FULL = replace(
    CATALOGUE,
    samplers=SAMPLERS,
    schedulers=SCHEDULERS,
    scripts=tuple(form.info(["None", "Lanczos", "R-ESRGAN 4x+"]) for form in FORMS),
    vaes=(ModelFile("soft.pt", "/models/soft.pt"),),
    loras=(ModelFile("style", "/models/style.safetensors", {"alias": "style", "metadata": {}}),),
    embeddings=(ModelFile("word", "/embeddings/word.pt", {"step": 1, "shape": 768, "vectors": 2}),),
    hypernetworks=(ModelFile("net", "/models/net.pt"),),
    upscalers=(
        ModelFile("None", "", {"scale": 4.0, "model_path": None}),
        ModelFile("Lanczos", "", {"scale": 4.0, "model_path": None}),
        ModelFile("R-ESRGAN 4x+", "/models/r.pth", {"model_name": "R-ESRGAN 4x+", "scale": 4.0}),
    ),
)


class PaintEngineWithNames(PaintEngine):
    step_seconds = 0.0

    async def run(self, job: Job, report: Report) -> Outcome:
        slowed = job.with_payload({**job.payload, "step_seconds": self.step_seconds})
        return await super().run(slowed, report)

    def catalogue(self) -> Catalogue:
        return FULL

    async def refresh(self) -> Catalogue:
        return FULL


@dataclass
class Native:
    client: httpx.AsyncClient
    service: Service
    engine: PaintEngineWithNames
    settings: Settings
    app: FastAPI

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.client.post(f"/sdapi/v1/{path}", json=body)

    async def get(self, path: str) -> Any:
        answer = await self.client.get(f"/sdapi/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def job(self) -> Job:
        """The job that the engine got last."""
        return self.engine.started[-1]


@asynccontextmanager
async def native(data_dir: Path, **changes: Any) -> AsyncIterator[Native]:
    """The standalone app below ``data_dir``, without its pages, asked by a caller on this machine."""
    settings = settings_below(data_dir, **{"nowebui": True, **changes})
    engine = PaintEngineWithNames()
    app = build(settings, engine=engine)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield Native(client, app.state.sd_cloud, engine, settings, app)


def picture_in(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def base64_png(side: int = 8, **text: str) -> str:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, value in text.items():
        info.add_text(name, value)
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(buffer, "PNG", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()
