"""The webui's hook for packages: adds what is missing, and moves nothing that is installed."""

from __future__ import annotations

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
}


def main() -> int:
    missing = [requirement for name, requirement in REQUIREMENTS.items() if not is_installed(name)]
    if not missing:
        return 0
    print(f"sd-cloud-api: installing {', '.join(missing)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "constraints.txt"
        keep.write_text("\n".join(installed()) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--prefer-binary", "-c", str(keep), *missing]
        code = subprocess.run(command, check=False).returncode
    if code != 0:
        print(
            f"sd-cloud-api: pip could not add {', '.join(missing)} (exit {code}, its message is above); "
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
