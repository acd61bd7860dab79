"""`sd-cloud launch` as it is, but for the engine: one that paints flat colours, slowly if told so,
until it is told to be quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import sd_cloud.host.app as host
from sd_cloud.launch import launch
from tests import fakes

if __name__ == "__main__":
    seconds = float(os.environ.get("PAINT_STEP_SECONDS", "0"))
    quick = Path(os.environ["PAINT_QUICK"])
    fakes.step_seconds = lambda job: 0.0 if quick.exists() else seconds
    build = host.build
    host.build = lambda settings: build(settings, engine=fakes.PaintEngine())  # type: ignore[misc]
    sys.exit(launch(sys.argv[1:], os.environ))
