"""The commands of the dialects' pages, run as they are printed against a started service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dialects import eas_client
from tests.dialects.serving import Served, served

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What the page's commands print with it -> the block's kind and a part of it.
SAID = {
    "queue.md": [("sh", '"status":0'), ("python", "txt2img_1 ")],
    "tasks.md": [("sh", '"status":"succeeded"')],
    "dashscope.md": [("python", "SUCCEEDED http://")],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data"), nowebui=True) as one:
        yield one


@pytest.mark.parametrize("page", sorted(SAID))
def test_the_commands_of_a_page_do_what_it_says(server: Served, page: str, tmp_path: Path) -> None:
    blocks = BLOCK.findall((DOCS / page).read_text())
    assert [kind for kind, _ in blocks] == [kind for kind, _ in SAID[page]]
    for (kind, code), (_, said) in zip(blocks, SAID[page], strict=True):
        code = code.replace("127.0.0.1:8000", server.url.removeprefix("http://")).replace("emoji", "first")
        environment = dict(os.environ)
        if "eas_prediction" in code:
            environment["PYTHONPATH"] = str(eas_client.installed())
        command = ["bash", "-e", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert said in done.stdout, done.stdout[-2000:]
