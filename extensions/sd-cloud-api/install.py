"""The webui's hook for packages: adds what is missing, and moves nothing that is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

#: Distribution -> requirement. Bounds that webui 1.10.1's own pins satisfy; torch is not among them.
REQUIREMENTS = {
    "oss2": "oss2>=2.18,<3",
    "SQLAlchemy": "SQLAlchemy>=2.0,<3",
    "alembic": "alembic>=1.13,<2",
    "onnxruntime": "onnxruntime>=1.17,<2",
}
#: Without what they ask for: nudenet would add a second OpenCV over the webui's own.
ALONE = {"nudenet": "nudenet>=3.4,<4"}
#: Where there is no OpenCV at all; the last ones for numpy 1.26.
OPENCV = "opencv-python-headless>=4.8,<4.12"


def main() -> int:
    missing = [requirement for name, requirement in REQUIREMENTS.items() if not is_installed(name)]
    if importlib.util.find_spec("cv2") is None:
        missing.append(OPENCV)
    alone = [requirement for name, requirement in ALONE.items() if not is_installed(name)]
    return (add(missing) if missing else 0) or (add(alone, "--no-deps") if alone else 0)


def add(requirements: list[str], *options: str) -> int:
    """Have pip add these and leave every installed package at its version."""
    print(f"sd-cloud-api: installing {', '.join(requirements)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "constraints.txt"
        keep.write_text("\n".join(installed()) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--prefer-binary", "-c", str(keep)]
        code = subprocess.run([*command, *options, *requirements], check=False).returncode
    if code != 0:
        print(
            f"sd-cloud-api: pip could not add {', '.join(requirements)} (exit {code}, its message is above); "
            "what needs them answers 501 until they are there",
            file=sys.stderr,
        )
    return code


def is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def installed() -> list[str]:
    """Every installed package at exactly its version, as constraints."""
    pins = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return [f"{name}=={number}" for name, number in sorted(pins.items())]


if __name__ == "__main__":
    sys.exit(main())
