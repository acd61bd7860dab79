"""``/sdapi/v1/interrogate``: words for a picture are a job like any other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sd_cloud.engines.base import Report
from sd_cloud.job import Job, Outcome
from tests.dialects.sdapi_world import Native, PaintEngineWithNames, base64_png, native
from tests.e2e.world import picture_server


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Native]:
    """The standalone app whose engine has a caption for every picture, and the weights it asks for."""
    paint = PaintEngineWithNames.run

    async def run(engine: PaintEngineWithNames, job: Job, report: Report) -> Outcome:
        await paint(engine, job, report)
        return Outcome((), {"caption": f"a cat, by {job.payload['model']}"})

    monkeypatch.setattr(PaintEngineWithNames, "run", run)
    async with native(tmp_path, image_link_allow=("127.0.0.1",)) as world:
        folder = world.settings.folders.deepbooru[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model-resnet_custom_v3.pt").touch()
        yield world


async def test_a_picture_is_described_by_a_job_of_its_caller(world: Native) -> None:
    answer = await world.post("interrogate", {"image": base64_png(), "model": "deepdanbooru"})
    assert answer.json() == {"caption": "a cat, by deepdanbooru"}
    assert (world.job.kind, world.job.target, world.job.owner) == ("interrogate", None, "local")
    assert world.job.option("deepbooru_use_spaces") is True


async def test_a_picture_to_describe_may_be_a_link(world: Native) -> None:
    with picture_server() as links:
        answer = await world.post("interrogate", {"image": links + "/boy.png", "model": "deepdanbooru"})
        gone = await world.post("interrogate", {"image": links + "/nobody.png", "model": "deepdanbooru"})
    assert answer.status_code == 200
    assert not world.job.payload["image"].startswith("http")
    assert gone.status_code == 424
    assert gone.json()["detail"].startswith("image: ")
