"""Registers our callbacks with the webui. No logic: that is in the package beside this folder."""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parents[1])
if HERE not in sys.path:
    sys.path.append(HERE)

from sd_cloud import inside_webui  # noqa: E402

inside_webui.loading()
inside_webui.register(__file__)

# The webui looks for its scripts among the names of this file.
CensorScript, CensorExtras = inside_webui.censor_scripts()
