"""Start an unmodified webui as its user does, with the extension in its extensions folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.e2e.serving import free_port
from tests.e2e.world import GOLDEN

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = ROOT / "extensions" / "sd-cloud-api"
WEBUI = Path(os.environ.get("SD_WEBUI_DIR") or "/nowhere")
NO_WEBUI = "needs an unmodified stable-diffusion-webui 1.10.1: set SD_WEBUI_DIR to its folder"
CONTROLNET = Path(os.environ.get("SD_WEBUI_CONTROLNET_DIR") or "/nowhere")
NO_CONTROLNET = "needs the extension sd-webui-controlnet: set SD_WEBUI_CONTROLNET_DIR to its folder"
#: What that extension must find when it is loaded; the webui's own packages stay as they are.
CONTROLNET_PACKAGES = ("addict", "controlnet_aux>=0.0.9")
CONTROLNET_MODEL = "control_v11p_sd15_canny"

START_SECONDS = 300
STOP_SECONDS = 30
#: A webui is taken as it is: nothing is installed, downloaded or tested for.
AS_IT_IS = (
    *("--skip-prepare-environment", "--skip-install", "--skip-python-version-check"),
    *("--skip-torch-cuda-test", "--no-download-sd-model"),
)


@dataclass(frozen=True)
class Host:
    """A webui's folder, with its Python in ``venv/``, and what its command line needs on a CPU."""

    folder: Path
    flags: tuple[str, ...]

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"


A1111 = Host(WEBUI, ("--do-not-download-clip", "--use-cpu", "all", "--no-half", "--precision", "full"))


def packages(host: Host = A1111) -> Path:
    """What the extension's own installer adds to this webui, in a folder beside its packages.

    Made by that installer, with the webui's Python, and kept: the webui itself stays as it is.
    """
    installer = EXTENSION / "install.py"
    return _kept_packages(host, installer.read_bytes(), [str(installer)])


def controlnet_packages() -> Path:
    """`CONTROLNET_PACKAGES`, without what they ask for: that would move the webui's pins."""
    pip = ["-m", "pip", "install", "--no-deps", "--prefer-binary", *CONTROLNET_PACKAGES]
    return _kept_packages(A1111, " ".join(pip).encode(), pip)


def _kept_packages(host: Host, made_by: bytes, command: list[str]) -> Path:
    key = hashlib.sha256(made_by + str(host.folder).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"webui-packages-{key}"
    if not (folder / ".complete").exists():
        environment = {**os.environ, "PIP_TARGET": str(folder), "PYTHONPATH": str(folder)}
        subprocess.run([str(host.python), *command], env=environment, check=True)
        folder.mkdir(parents=True, exist_ok=True)  # pip makes none where nothing is missing
        (folder / ".complete").touch()
    return folder


def data_dir(root: Path, *, extension: bool = True) -> Path:
    """A webui's data dir: the golden checkpoints, the extension, next to nothing saved as an option."""
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
    for sidecar in (root / "models/Stable-diffusion").glob("*.yaml"):
        sidecar.chmod(0o644)
        sidecar.write_text(sidecar.read_text().replace("@tinyclip", str(GOLDEN / "tinyclip")))
    (root / "config.json").write_text(json.dumps({"sd_model_checkpoint": "tiny-a.safetensors"}))
    if extension:
        add_extension(root)
    return root


def add_extension(root: Path) -> Path:
    """The extension, as copying its folder puts it there."""
    target = root / "extensions" / "sd-cloud-api"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(EXTENSION, target, ignore=ignored, dirs_exist_ok=True)
    return target


def add_controlnet(root: Path) -> None:
    """sd-webui-controlnet as its users have it, with one model."""
    from tests.e2e.controlnet import write_adapter  # safetensors is not in every environment

    ignored = shutil.ignore_patterns("__pycache__", ".git")
    shutil.copytree(CONTROLNET, root / "extensions" / "sd-webui-controlnet", ignore=ignored)
    write_adapter(root / "models" / "ControlNet" / f"{CONTROLNET_MODEL}.safetensors")


@dataclass
class Running:
    """A webui that serves."""

    url: str
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # what Ctrl+C does: the webui's own way to stop
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def starts(self) -> int:
        """How often it has come up: once, and once more for each "Reload UI"."""
        return len(re.findall(r"^Startup time", self.said, re.MULTILINE))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=300, trust_env=False)


@contextmanager
def webui(
    data_dir: Path, *flags: str, ui: bool = False, api_auth: str | None = None, host: Host = A1111
) -> Iterator[Running]:
    """The webui of SD_WEBUI_DIR, or another one, on a free port, ready; stopped afterwards."""
    port = free_port()
    log = data_dir / "webui.log"
    command = [str(host.python), "launch.py", *AS_IT_IS, *host.flags, "--server-name", "127.0.0.1"]
    command += ["--port", str(port), "--data-dir", str(data_dir), "--api", *flags]
    command += [] if ui else ["--nowebui"]
    command += ["--api-auth", api_auth] if api_auth else []
    auth = httpx.BasicAuth(*api_auth.split(":")) if api_auth else None
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=host.folder, stdout=out, stderr=subprocess.STDOUT, env=_environment(data_dir, host)
        )
    running = Running(f"http://127.0.0.1:{port}", data_dir, log, process)
    if auth is not None:
        request = next(auth.sync_auth_flow(httpx.Request("GET", running.url)))
        running.headers = {"Authorization": request.headers["Authorization"]}
    try:
        wait_until_started(running, 1)
        yield running
    finally:
        running.stop()


def _environment(data_dir: Path, host: Host = A1111) -> dict[str, str]:
    left_out = ("COMMANDLINE_ARGS", "PYTHONHOME", "WEBUI_LAUNCH_LIVE_OUTPUT")
    return {
        **{name: value for name, value in os.environ.items() if name not in left_out},
        "PYTHONPATH": os.pathsep.join(map(str, _folders_of_packages(host))),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "NO_PROXY": "127.0.0.1,localhost",
        # Two OpenMP threads on a busy machine wait for each other.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "XDG_STATE_HOME": str(data_dir / "state-home"),
    }


def _folders_of_packages(host: Host) -> list[Path]:
    with_controlnet = CONTROLNET.is_dir() and host is A1111
    return [packages(host), *([controlnet_packages()] if with_controlnet else [])]


def help_of(data_dir: Path) -> str:
    """The help of the webui's own parser once it has read every extension's flags.

    ``launch.py --help`` of 1.10.1 ends before that and lists no extension's, its built-in ones neither.
    """
    text = (
        f"import sys; sys.argv = ['launch.py', '--data-dir', {str(data_dir)!r}]; sys.path.insert(0, '.'); "
        "from modules import shared_cmd_options; print(shared_cmd_options.parser.format_help())"
    )
    command = [str(A1111.python), "-c", text]
    done = subprocess.run(
        command, cwd=WEBUI, env=_environment(data_dir), capture_output=True, text=True, check=True
    )
    return done.stdout


def wait_until_started(running: Running, times: int) -> None:
    """Nothing is sent before the log says so: a request to a webui that starts its UI ends it."""
    deadline = time.monotonic() + START_SECONDS
    while running.starts() < times:
        if running.process.poll() is not None:
            raise AssertionError(f"the webui ended with {running.process.returncode}: {running.said[-4000:]}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not started after {START_SECONDS} s: {running.said[-4000:]}")
        time.sleep(0.1)
    while True:
        try:
            with running.client() as client:
                if client.get("/sdapi/v1/sd-models").status_code == 200:
                    return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"not answering after {START_SECONDS} s: {running.said[-4000:]}")
        time.sleep(0.1)
