"""What the extension adds to the start of a real webui (SD_WEBUI_DIR), with its page and without.

Started in turn with and without the extension, in one data dir each, so that all but the first starts
find their store. Our modules are compiled before, as Python leaves them after any start. A clock, itself
an extension that is loaded first, notes the CPU and wall seconds of loading our script and of our
callbacks; the CPU seconds of the whole process until it serves are compared with the starts without us.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import figures
import psutil
from tests.webui.real import A1111, NO_WEBUI, WEBUI, data_dir, webui

CLOCK = """
import json, os, time
from pathlib import Path
from modules import script_callbacks, script_loading

NOTES = Path(os.environ["SD_CLOUD_CLOCK"])

def noted(name, function):
    def call(*args, **kwargs):
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            part = {"part": name, "wall": time.perf_counter() - wall, "cpu": time.thread_time() - cpu}
            with NOTES.open("a") as out:
                out.write(json.dumps(part) + "\\n")
    return call

load = script_loading.load_module

def load_module(path):
    if "sd-cloud-api" not in str(path):
        return load(path)
    added = script_callbacks.add_callback
    def add_callback(callbacks, fun, **more):
        return added(callbacks, noted(fun.__name__, fun), **more)
    script_callbacks.add_callback = add_callback
    try:
        return noted("loading the script", load)(path)
    finally:
        script_callbacks.add_callback = added

script_loading.load_module = load_module
"""


def start(root: Path, *, ui: bool) -> tuple[float, list[dict[str, Any]]]:
    """CPU seconds of the process until it serves, and what the clock noted of us."""
    notes = root / "clock"
    notes.unlink(missing_ok=True)
    os.environ["SD_CLOUD_CLOCK"] = str(notes)
    with webui(root, "--skip-load-model-at-start", ui=ui) as running:
        spent = psutil.Process(running.process.pid).cpu_times()
    parts = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return spent.user + spent.system, parts


def prepared(root: Path, *, extension: bool) -> Path:
    data_dir(root, extension=extension)
    subprocess.run([str(A1111.python), "-m", "compileall", "-q", str(root)], check=True)
    scripts = root / "extensions" / "aa-clock" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "clock.py").write_text(CLOCK)
    return root


def ours(parts: list[dict[str, Any]], kind: str) -> float:
    return sum(float(part[kind]) for part in parts)


def measure(folder: Path, *, ui: bool, starts: int) -> None:
    title = "with its page" if ui else "api only"
    with_us = prepared(folder / f"with {title}", extension=True)
    without = prepared(folder / f"without {title}", extension=False)
    found, all_with, all_without = [], [], []
    for _ in range(starts):
        spent, parts = start(with_us, ui=ui)
        found.append(parts)
        all_with.append(spent)
        all_without.append(start(without, ui=ui)[0])
        told = ", ".join(f"{part['part']} {part['cpu']:.3f}" for part in parts)
        print(f"{title}: of ours {ours(parts, 'cpu'):.2f} s CPU, {ours(parts, 'wall'):.2f} s wall ({told})")
        print(f"    whole start: {spent:.2f} s CPU, without us {all_without[-1]:.2f}", flush=True)
    later = found[1:] or found
    print(
        f"{title}: median of ours after the first start {median(ours(p, 'cpu') for p in later):.2f} s CPU, "
        f"{median(ours(p, 'wall') for p in later):.2f} s wall; whole starts differ by "
        f"{median(all_with[1:] or all_with) - median(all_without[1:] or all_without):+.2f} s CPU",
        flush=True,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--starts", type=int, default=4, help="starts of each kind")
    given = arguments.parse_args()
    if not WEBUI.is_dir():
        raise SystemExit(NO_WEBUI)
    print(figures.machine())
    with tempfile.TemporaryDirectory() as folder:
        for ui in (False, True):
            measure(Path(folder), ui=ui, starts=given.starts)


if __name__ == "__main__":
    main()
