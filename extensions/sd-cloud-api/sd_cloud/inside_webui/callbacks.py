"""The webui's callbacks, one function each. A failure of ours is logged by name and goes no further."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def _not_collecting() -> Iterator[None]:
    """Loading modules makes what stays. To look through all of the webui's objects for garbage meanwhile
    takes as long as the loading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_or_without("anything of it")
def register(file: str) -> None:
    """Have the webui call `app_started` and `tabs`. ``file`` is the script that it loads us by.

    ``script_callbacks.on_app_started`` would read the source of every caller to find that out, 0.1 s each.
    """
    from modules.script_callbacks import add_callback, callback_map

    for category, function in (("app_started", app_started), ("ui_tabs", tabs)):
        add_callback(callback_map[f"callbacks_{category}"], function, category=category, filename=file)


@_or_without("checkpoints kept in RAM")
def loading() -> None:
    """The scripts are being loaded: what must be in place before the first checkpoint is."""
    from modules.shared import cmd_opts

    if getattr(cmd_opts, "sd_dynamic_cache", False):
        from sd_cloud.inside_webui.ram import keep_checkpoints

        keep_checkpoints(reserved_gib=cmd_opts.min_ram_reserved)


@_or_without("its API")
@_not_collecting()
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
@_not_collecting()
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
