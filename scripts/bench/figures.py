"""What the benchmarks share: percentiles, and a service to measure."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "extensions" / "sd-cloud-api"), str(ROOT / "scripts" / "launch")]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the values do not exceed: nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Service:
    url: str
    process: subprocess.Popen[bytes]
    start_seconds: float  # from the process' start to a 200 of /readyz
    open_seconds: float  # from the process' start to a 200 of /healthz

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=600, trust_env=False)


@contextmanager
def service(data_dir: Path, *flags: str) -> Iterator[Service]:
    """`sd-cloud launch` on a free port of this machine, ready; stopped by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = [
        "--port",
        str(port),
        "--data-dir",
        str(data_dir),
        "--state-dir",
        str(data_dir / "state"),
        "--nowebui",
    ]
    log = data_dir / "service.log"
    started = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sd_cloud", "launch", *own, *flags], stdout=out, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        opened = _answers(f"{url}/healthz", process, log) - started
        ready = _answers(f"{url}/readyz", process, log) - started
        yield Service(url, process, ready, opened)
    finally:
        process.terminate()
        process.wait(120)


def _answers(url: str, process: subprocess.Popen[bytes], log: Path, limit_seconds: float = 300) -> float:
    deadline = time.perf_counter() + limit_seconds
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the service ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return time.perf_counter()
        except httpx.TransportError:
            pass
        time.sleep(0.01)
    raise SystemExit(f"{url} did not answer 200 within {limit_seconds} s:\n{log.read_text()[-3000:]}")


def tiny_data_dir(folder: Path) -> Path:
    """A data dir with the small random checkpoint of `scripts/launch/tiny_checkpoint.py`."""
    import tiny_checkpoint

    checkpoint = folder / "models" / "Stable-diffusion" / "tiny-random.safetensors"
    if not checkpoint.exists():
        tiny_checkpoint.write(checkpoint)
    return folder


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return f"{cores} cores, load average {load:.1f} at the start, Python {sys.version.split()[0]}"
