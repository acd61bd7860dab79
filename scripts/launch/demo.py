"""`install.py demo`: start the service, send the EAS guide's own txt2img request, show the answer.

The request is the guide's ("txt2img请求和返回示例") but for the names of the checkpoint and the
folder, and for prompt, size and steps, which would take minutes on a CPU as they stand there. The
demo checkpoint draws at 64 x 64; the webui's own hires fix brings that to a size to look at.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA_DIR = ROOT / "data" / "demo"
DEMO_MODELS = ROOT / "demo" / "models"
MODEL_FLAGS = {
    "Stable-diffusion": "--ckpt-dir",
    "VAE": "--vae-dir",
    "Lora": "--lora-dir",
    "ControlNet": "--controlnet-dir",
}
START_SECONDS = 300
ANSWER_SECONDS = 600
STOP_SECONDS = 60
LONGEST_SHOWN = 160  # characters
LEFT_WHOLE = ("image_url",)  # paths, to be opened
GAP = 24


class Problem(Exception):
    """What went wrong, for a person."""


#: What the demo checkpoint (demo/MODEL_CARD.md) knows, and is asked for.
PROMPTS = ("a red apple", "a cat face", "a rocket")
#: At its own size, as its card says, then enlarged without being drawn over.
AS_TRAINED = {
    "width": 64,
    "height": 64,
    "steps": 20,
    "cfg_scale": 3,
    "negative_prompt": "",
    "enable_hr": True,
    "hr_scale": 4,
    "hr_upscaler": "Lanczos",
    "denoising_strength": 0.0,
}


def guide_request(checkpoint: str, save_dir: Path, prompt: str) -> dict[str, Any]:
    return {
        "alwayson_scripts": {
            "sd_model_checkpoint": checkpoint,
            "save_dir": str(save_dir),
            "sd_vae": "Automatic",
        },
        "steps": 8,
        "prompt": prompt,
        "batch_size": 1,
        "n_iter": 2,
        "width": 256,
        "height": 256,
        "negative_prompt": "ugly, out of frame",
    }


@dataclass(frozen=True)
class Plan:
    """What the demo asks for: of which checkpoint, and the flags by which the service finds it."""

    checkpoint: str
    prompts: tuple[str, ...]
    changes: dict[str, Any]
    flags: list[str]


def plan() -> Plan:
    trained = DEMO_MODELS / "Stable-diffusion" / "emoji.safetensors"
    if trained.exists():
        folders = {flag: DEMO_MODELS / name for name, flag in MODEL_FLAGS.items()}
        flags = [f"{flag}={folder}" for flag, folder in folders.items() if folder.is_dir()]
        return Plan(trained.name, PROMPTS, AS_TRAINED, flags)
    tiny = DATA_DIR / "models" / "Stable-diffusion" / "tiny-random.safetensors"
    if not tiny.exists():
        print("making a small checkpoint with random weights: it draws patterns, not things", flush=True)
        from tiny_checkpoint import write

        write(tiny)
    return Plan(tiny.name, ("girls",), {}, [])


@contextmanager
def service(flags: list[str]) -> Iterator[str]:
    """The service on a free port of this machine, ready; its URL. Stopped by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = DATA_DIR / "service.log"
    own = ["--port", str(port), "--data-dir", str(DATA_DIR), "--state-dir", str(DATA_DIR / "state")]
    command = [sys.executable, "-m", "sd_cloud", "launch", "--api", "--nowebui", *own, *flags]
    print(f"starting the service (its log: {log})", flush=True)
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        print(f"ready at {url} after {time.monotonic() - started:.1f} s", flush=True)
        yield url
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SECONDS)
        if code != 0:
            raise Problem(f"the service ended with {code} when it was told to stop")
        print("stopped", flush=True)
    except (Problem, OSError, subprocess.TimeoutExpired) as error:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise Problem("\n".join([str(error), f"the end of {log}:", *lines[-30:]])) from error
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    reason = "it does not answer"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Problem(f"the service ended with {process.returncode} while it started")
        try:
            status, answer = call(f"{url}/readyz", None, 5)
            if status == 200:
                return
            reason = str(answer.get("reason"))
            if "does not start" in reason:
                raise Problem(f"the service will not come up: {reason}")
        except OSError:
            pass
        time.sleep(0.1)
    raise Problem(f"the service was not ready within {START_SECONDS} s: {reason}")


def call(url: str, body: dict[str, Any] | None, seconds: float) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    try:
        with direct.open(request, timeout=seconds) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def show(title: str, content: Any) -> None:
    print(f"\n{title}\n{json.dumps(shortened(content), indent=2, ensure_ascii=False)}", flush=True)


def shortened(content: Any) -> Any:
    """The same with every long string cut in its middle: links and `info` fill screens."""
    if isinstance(content, dict):
        return {key: value if key in LEFT_WHOLE else shortened(value) for key, value in content.items()}
    if isinstance(content, list):
        return [shortened(value) for value in content]
    if isinstance(content, str) and len(content) > LONGEST_SHOWN:
        return f"{content[: LONGEST_SHOWN - 40]} … {content[-40:]}"
    return content


def side_by_side(paths: list[Path], target: Path) -> Path:
    """One picture of several, to open first."""
    from PIL import Image

    pictures = [Image.open(path).convert("RGB") for path in paths]
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    row.save(target)
    return target


def main() -> int:
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    asked = plan()
    try:
        with service(asked.flags) as url:
            made = [ask(url, asked, number) for number in range(len(asked.prompts))]
            print("\npictures, the grid of each request first:")
            for prompt, paths in zip(asked.prompts, made, strict=True):
                print(f"{prompt}:", *paths, sep="\n  ")
            lasts = side_by_side([paths[-1] for paths in made], DATA_DIR / "demo.png")
            print(f"\nthe last of each, side by side:\n  {lasts}\n", flush=True)
    except Problem as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    return 0


def ask(url: str, asked: Plan, number: int) -> list[Path]:
    """Send one request; the files that its answer names. The first is shown in full."""
    request = guide_request(asked.checkpoint, DATA_DIR / "outputs", asked.prompts[number]) | asked.changes
    if number == 0:
        show(f"POST {url}/sdapi/v1/txt2img", request)
    started = time.monotonic()
    status, answer = call(f"{url}/sdapi/v1/txt2img", request, ANSWER_SECONDS)
    failed = status != 200 or answer["parameters"]["status"] != 0
    if number == 0 or failed:
        show(f"{status} after {time.monotonic() - started:.1f} s", answer)
    if failed:
        raise Problem("the request failed; the answer above says why")
    paths = [Path(path).resolve() for path in answer["parameters"]["image_url"].split(",")]
    for path in paths:
        if not path.is_file():
            raise Problem(f"the answer names {path}, which is not there")
    return paths


if __name__ == "__main__":
    sys.exit(main())
