"""Write the constraints from what is installed in this environment.

Run it with the environment's own Python after a deliberate upgrade: ``.venv/bin/python
scripts/launch/pins.py`` writes constraints.txt and constraints-test.txt, ``.venv-webui/bin/python
scripts/launch/pins.py webui`` constraints-webui.txt. Every package that the roots need, directly
or not, is pinned to the exact version that was tested.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

#: What the service itself imports.
RUNTIME = (
    "torch", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "torchsde", "scipy",
    "numpy", "pillow", "opencv-python-headless", "onnxruntime", "regex", "ftfy", "lark", "PyYAML", "piexif",
    "fastapi", "uvicorn", "websockets", "python-multipart", "httpx", "httpcore", "gradio", "psutil",
    "nudenet", "oss2", "SQLAlchemy", "alembic", "psycopg[binary]", "argon2-cffi", "protobuf",
    "sentencepiece", "setuptools",
)  # fmt: skip
#: What only tests, checks and the demo's training add.
TEST = (
    "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "hypothesis", "trustme", "import-linter",
    "ruff", "mypy", "types-PyYAML", "types-psutil", "types-regex", "types-protobuf",
    "resvg_py", "scikit-image", "dashscope", "pgserver", "playwright",
)  # fmt: skip
#: What the shared part imports, in the webui's versions of it, and its tests.
WEBUI = (
    "fastapi", "starlette", "pydantic", "anyio", "httpx", "httpcore", "h11", "uvicorn", "websockets",
    "python-multipart", "pillow", "numpy", "protobuf", "lark", "psutil", "PyYAML", "piexif", "certifi",
    "oss2", "SQLAlchemy", "alembic", "psycopg[binary]", "argon2-cffi",
    "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "hypothesis", "trustme", "pgserver",
)  # fmt: skip


def closure(roots: tuple[str, ...]) -> dict[str, str]:
    """Package name -> its pin, of the roots and all they need here, extras included."""
    found: dict[str, str] = {}
    open_ = [Requirement(root) for root in roots]
    while open_:
        wanted = open_.pop()
        dist = distribution(wanted.name)
        first = _key(dist.name) not in found
        found[_key(dist.name)] = f"{dist.name}=={dist.version.split('+')[0]}{_only_on(wanted)}"
        if not first and not wanted.extras:
            continue
        for line in dist.requires or ():
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": one}) for one in extras):
                open_.append(needed)
    return found


def _only_on(wanted: Requirement) -> str:
    """The marker of a package that is only needed, and only to be had, on some Pythons."""
    marker = str(wanted.marker or "")
    return f"; {marker}" if "python_version" in marker and "extra" not in marker else ""


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _write(path: Path, title: str, pins: dict[str, str]) -> None:
    python = ".".join(map(str, sys.version_info[:2]))
    head = f"# {title}\n# Written by scripts/launch/pins.py: tested together on Python {python}.\n"
    path.write_text(head + "\n".join(pins[key] for key in sorted(pins)) + "\n", encoding="utf-8")


def main() -> None:
    if sys.argv[1:] == ["webui"]:
        title = "A webui 1.10.1's own versions, and what the shared part's tests need beside them"
        _write(ROOT / "constraints-webui.txt", title, closure(WEBUI))
        return
    runtime = closure(RUNTIME)
    test = {key: pin for key, pin in closure(TEST).items() if key not in runtime}
    _write(ROOT / "constraints.txt", "What the service needs", runtime)
    _write(ROOT / "constraints-test.txt", "What the tests and checks need beside constraints.txt", test)
    print(f"{len(runtime)} + {len(test)} packages pinned")


if __name__ == "__main__":
    main()
