"""Our pages as tabs of the webui: each in a frame, by an address relative to the page it is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def framed_pages() -> Sequence[tuple[Any, str, str]]:
    """(blocks, title, id) of every page, as the webui's ``on_ui_tabs`` wants them."""
    return ()
