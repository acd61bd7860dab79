"""Registers our callbacks with the webui. No logic: that is in the package beside this folder."""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parents[1])
if HERE not in sys.path:
    sys.path.append(HERE)

from modules import script_callbacks  # noqa: E402

from sd_cloud.inside_webui import app_started, tabs  # noqa: E402

script_callbacks.on_app_started(app_started)
script_callbacks.on_ui_tabs(tabs)
