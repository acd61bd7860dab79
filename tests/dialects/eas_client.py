"""The ``eas-prediction`` package, in a folder of its own: it pins a protobuf of 2022."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENT = "eas-prediction==0.36"
FOLDER = Path(sys.prefix) / "clients" / "eas"
ROOT = Path(__file__).parents[2]


def installed() -> Path:
    """The folder; filled from the package index at first. Skips when that can't be done."""
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of tests may be filling it
        if not (FOLDER / "eas_prediction").is_dir():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(FOLDER), REQUIREMENT]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{REQUIREMENT} can't be installed: {done.stderr[-300:]}")
    return FOLDER


def run(script: str, *arguments: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """A script of this folder, with the client and its protobuf on its path."""
    return subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        env={**os.environ, "PYTHONPATH": str(installed())},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
