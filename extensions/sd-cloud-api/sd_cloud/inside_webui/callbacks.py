"""The webui's callbacks, one function each. A failure of ours is logged by name and goes no further."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

T = TypeVar("T")


def _or_without(what: str, instead: Any = None) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """The webui goes on without ``what`` when the function fails; it gets ``instead``."""

    def guarded(function: Callable[..., T]) -> Callable[..., T]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> T:
            try:
                return function(*args, **kwargs)
            except Exception:
                name = function.__name__
                log.exception("sd-cloud-api: %s failed; the webui goes on without %s", name, what)
                return cast(T, instead)

        return call

    return guarded


@_or_without("checkpoints kept in RAM")
def loading() -> None:
    """The scripts are being loaded: what must be in place before the first checkpoint is."""
    from modules.shared import cmd_opts

    if getattr(cmd_opts, "sd_dynamic_cache", False):
        from sd_cloud.inside_webui.ram import keep_checkpoints

        keep_checkpoints(reserved_gib=cmd_opts.min_ram_reserved)


@_or_without("its API")
def app_started(demo: Any, app: FastAPI) -> None:
    """``on_app_started``: hook this app. ``demo`` is None with ``--nowebui``.

    Called again, with another app, after "Reload UI".
    """
    from modules.shared import opts

    from sd_cloud.inside_webui.hook import hook
    from sd_cloud.inside_webui.page_tabs import page_is_built

    page_is_built(opts)
    hook(app)


@_or_without("its tabs", ())
def tabs() -> Sequence[tuple[Any, str, str]]:
    """``on_ui_tabs``, while the page is built: our pages, each in a frame, as (blocks, title, id)."""
    from modules.shared import cmd_opts, opts

    from sd_cloud.inside_webui.page_tabs import framed_pages, hide_tabs

    hide_tabs(opts, getattr(cmd_opts, "always_hide_tabs", None) or ())
    return framed_pages()


@_or_without("the check of pictures", (None, None))
def censor_scripts() -> tuple[type[Any] | None, type[Any] | None]:
    """The webui's script classes that check every picture; None without ``--enable-nsfw-censor``."""
    from modules.shared import cmd_opts

    if not getattr(cmd_opts, "enable_nsfw_censor", False):
        return None, None
    from sd_cloud.inside_webui import censor

    return censor.censor_scripts(censor.Checking(censor.nudenet_clean))
