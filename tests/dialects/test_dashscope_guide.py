"""The guides' own samples, run as they are printed: only the host, the key and the task id are ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dialects.serving import Served, served

pytest.importorskip("dashscope", reason="the dashscope package is not installed")

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
GUIDES = ("dashscope-sd15-sdxl.txt", "dashscope-sd35.txt")
THEIRS = "https://dashscope.aliyuncs.com"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data"), nowebui=True) as one:
        yield one


@pytest.fixture(params=GUIDES)
def guide(request: pytest.FixtureRequest) -> str:
    path = REFERENCE / request.param
    if not path.exists():
        pytest.skip(f"the guide's {request.param} is not beside this checkout (../shared)")
    return path.read_text()


def part(text: str, start: str, end: str) -> str:
    """The first piece of a text from ``start`` to ``end``, both included."""
    begin = text.index(start)
    return text[begin : text.index(end, begin) + len(end)]


def run(command: list[str], server: Served, folder: Path) -> str:
    own = {"DASHSCOPE_HTTP_BASE_URL": f"{server.url}/api/v1", "DASHSCOPE_API_KEY": "sk-any"}
    done = subprocess.run(
        command, env={**os.environ, **own}, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_python_sample_makes_and_saves_its_pictures(guide: str, server: Served, tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(part(guide, "from http import HTTPStatus", "\n    sample_async_call()\n"))
    said = run([sys.executable, str(sample)], server, tmp_path)
    assert "Failed" not in said and said.count('"task_status": "SUCCEEDED"') == 2, said
    assert '"image_count": 1' in said
    [saved] = tmp_path.glob("*.png")
    assert saved.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's sample is a curl command")
def test_the_curl_samples_submit_and_fetch(guide: str, server: Served, tmp_path: Path) -> None:
    def curl(sample: str) -> dict[str, Any]:
        command = sample.replace(THEIRS, server.url).replace("curl", "curl --silent", 1)
        return dict(json.loads(run(["bash", "-c", command], server, tmp_path)))

    submitted = curl(part(guide, "curl --location", "}'"))
    assert submitted.keys() == {"output", "request_id"}
    assert submitted["output"].keys() == {"task_id", "task_status"}
    assert submitted["output"]["task_status"] == "PENDING"
    task_id = submitted["output"]["task_id"]
    fetch = re.sub("(?<=tasks/)[0-9a-f-]{36}", task_id, part(guide, "curl -X GET", "a421c010"))
    fetched = curl(fetch)
    while fetched["output"]["task_status"] in ("PENDING", "RUNNING"):
        fetched = curl(fetch)
    assert fetched["output"]["task_metrics"] == {"TOTAL": 4, "SUCCEEDED": 4, "FAILED": 0}
    assert fetched["usage"] == {"image_count": 4} and len(fetched["output"]["results"]) == 4


def test_the_bad_key_is_told_in_the_guides_words(guide: str, server: Served) -> None:
    import httpx

    printed = json.loads(part(guide, '{\n    "code":"InvalidApiKey"', "\n}"))
    headers = {"X-DashScope-Async": "enable", "Authorization": "Bearer x", "X-Forwarded-For": "8.8.8.8"}
    path = "/api/v1/services/aigc/text2image/image-synthesis"
    refused = httpx.post(server.url + path, json={}, headers=headers)
    assert refused.status_code == 401
    assert {**refused.json(), "request_id": ""} == {**printed, "request_id": ""}
