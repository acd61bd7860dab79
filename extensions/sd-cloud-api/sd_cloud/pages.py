"""Our pages: what a tab of the webui or of the standalone host shows in a frame.

They are plain files in ``web/`` beside the package. Every address in them, and that of the frame
itself, is relative, so that they work below ``--subpath`` and behind a proxy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sd_cloud.settings import Settings

WEB = Path(__file__).resolve().parents[1] / "web"
#: Where the files are served.
ROUTE = "/sd-cloud/pages"


@dataclass(frozen=True)
class Page:
    """``id`` names its file (``web/<id>.html``) and its tab; ``title`` is its tab's."""

    id: str
    title: str
    title_zh: str


JOBS = Page("jobs", "Jobs", "任务")
FILES = Page("files", "Files", "文件")


def pages_of(settings: Settings) -> tuple[Page, ...]:
    """The pages that have a tab: Files only with ``--filebrowser``, none that is always hidden."""
    pages = (JOBS, FILES) if settings.filebrowser else (JOBS,)
    return tuple(p for p in pages if not is_hidden(settings.always_hide_tabs, p.id, p.title))


def is_hidden(always_hide_tabs: Iterable[str], *names: str) -> bool:
    """Whether ``--always-hide-tabs`` names a tab, by its id or its title, in whatever case."""
    hidden = {_plain(name) for name in always_hide_tabs}
    return any(_plain(name) in hidden for name in names)


def frame(page: Page) -> str:
    """The HTML of the page's tab."""
    address = f"{ROUTE.lstrip('/')}/{page.id}.html"
    style = "width: 100%; height: 80vh; border: 0; border-radius: 8px"
    return f'<iframe src="{address}" title="{page.title}" style="{style}" loading="lazy"></iframe>'


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "").replace("_", "")
