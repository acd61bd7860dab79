"""Start the standalone service as a user does, and stop it as a supervisor does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.world import GOLDEN

START_SECONDS = 240


def golden_data_dir(root: Path) -> Path:
    """A data dir with the golden checkpoints where the webui has them."""
    places = {
        "models/Stable-diffusion": ("tiny-a", "tiny-b"),
        "models/VAE": ("tiny-vae",),
        "models/Lora": ("tiny-style",),
        "embeddings": ("tiny-word",),
    }
    for folder, names in places.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            for file in (GOLDEN / "checkpoints").glob(f"{name}.*"):
                shutil.copy(file, root / folder)
    (root / "config.json").write_text('{"sd_model_checkpoint": "tiny-a.safetensors"}')
    return root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def standalone(
    data_dir: Path,
    *flags: str,
    environment: dict[str, str] | None = None,
    with_page: bool = False,
    until: str = "/readyz",
) -> Iterator[str]:
    """The service on a free port, ``until`` answered; its URL. Stopped with SIGTERM, it must exit with 0."""
    log = data_dir / "service.log"
    command = [sys.executable, "-m", "sd_cloud", "launch", "--port", "0", "--data-dir", str(data_dir)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--api", *([] if with_page else ["--nowebui"]), *flags],
            stdout=out,
            stderr=subprocess.STDOUT,
            # By its path, a data dir of an earlier run would have left its tasks in a place of the user's.
            env={**os.environ, "XDG_STATE_HOME": str(data_dir / "state-home"), **(environment or {})},
        )
    try:
        url = url_said(process, log)
        wait_until_ready(url + until, process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0, f"exit {code}: {log.read_text()[-3000:]}"
    assert not re.search(r"Traceback", log.read_text()), log.read_text()[-3000:]


def url_said(process: subprocess.Popen[Any], log: Path) -> str:
    """Where a service that was started with ``--port 0`` serves, by its log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"serving on (\S+)\n", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-3000:])


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the service ended with {process.returncode}: {log.read_text()[-3000:]}")
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready after {START_SECONDS} s: {log.read_text()[-3000:]}")
