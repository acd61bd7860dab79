"""What a real webui 1.10.1 answered; see ``shared/reference/README.md``. Skips where it is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "reference" / "webui-1.10.1"

needs_reference = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER.name} is not beside this checkout")


def reference(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())
