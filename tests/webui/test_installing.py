"""Every way into a webui, with the webui's own function that runs an extension's installer.

It runs in an environment of its own that sees the webui's packages: those must stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.webui.real import A1111, ROOT, WEBUI

pytestmark = pytest.mark.engine

RUN_INSTALLER = """
import sys
sys.argv = ["launch.py", "--skip-python-version-check"]
sys.path.insert(0, {webui!r})
from modules import launch_utils
launch_utils.run_extension_installer({extension!r})
"""
LIST = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the webui's packages, in which more can be installed."""
    folder = tmp_path_factory.mktemp("scratch") / "venv"
    subprocess.run([str(A1111.python), "-m", "venv", "--without-pip", str(folder)], check=True)
    [own] = folder.glob("lib/python3*/site-packages")
    (own / "webui.pth").write_text(str(WEBUI / "venv" / own.relative_to(folder)) + "\n")
    return folder / "bin" / "python"


def ask(python: Path, text: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", text], cwd=WEBUI, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_clone_of_the_repository_puts_the_extension_beside_itself_and_moves_no_pin(
    python: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "extensions" / "sd-cloud-api"
    clone.parent.mkdir()
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
    before = json.loads(ask(python, LIST))
    said = ask(python, RUN_INSTALLER.format(webui=str(WEBUI), extension=str(clone)))
    beside = tmp_path / "extensions" / "sd-cloud-api-extension"
    assert str(beside) in said and (beside / "scripts" / "sd_cloud_api.py").is_file()
    assert not list((clone / "scripts").glob("*.py")), "the webui would run these"
    after = json.loads(ask(python, LIST))
    moved = {
        name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version
    }
    assert moved == {}
    added = set(after) - set(before)
    assert {"sqlalchemy", "alembic", "oss2", "nudenet", "onnxruntime"} <= added
    assert not {"torch", "opencv-python-headless"} & added
    again = ask(python, RUN_INSTALLER.format(webui=str(WEBUI), extension=str(beside)))
    assert "installing" not in again
    ask(python, "import cv2, nudenet, numpy; assert numpy.__version__ == '1.26.2'; nudenet.NudeDetector()")


def test_install_webui_copies_into_the_folder_it_is_given(tmp_path: Path) -> None:
    for name in ("modules", "extensions"):
        (tmp_path / name).mkdir()
    (tmp_path / "launch.py").touch()
    command = [str(A1111.python), str(ROOT / "install.py"), "webui", str(tmp_path)]
    for _ in range(2):  # an older copy is replaced
        subprocess.run(command, check=True)
    assert (tmp_path / "extensions/sd-cloud-api/web/jobs.html").is_file()
    assert (tmp_path / "extensions/sd-cloud-api/preload.py").is_file()
