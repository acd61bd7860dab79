"""Scripts that a job asks for and that fail, as the failure of the job.

The webui catches what an always-visible script raises, logs it and draws on without: a request with a
ControlNet that could not be loaded is answered with 200 and a picture that nothing controlled.

Written against stable-diffusion-webui 1.10.1 (``modules/scripts.py``, ``modules/errors.py``).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sd_cloud.errors import BadRequest, EngineFailed, ServiceError


@contextmanager
def asked_scripts_run(runner: Any, payload: Mapping[str, Any]) -> Iterator[None]:
    """Within: this thread makes a picture with ``runner``'s scripts.

    Raises BadRequest or EngineFailed, naming the script, when one that ``alwayson_scripts`` asks for
    failed. The picture is given up at the failure, between two steps, so that every script cleans up.
    """
    from modules import errors, shared

    files = _files_of_asked(runner, payload)
    here = threading.get_ident()
    heard: list[ServiceError] = []
    report = errors.report

    def listening(message: str, *, exc_info: bool = False) -> None:
        report(message, exc_info=exc_info)
        failure = sys.exc_info()[1]
        if failure is None or threading.get_ident() != here:
            return
        for file, name in files.items():
            if file in message:
                heard.append(_failed(name, failure))
                shared.state.interrupt()

    errors.report = listening
    try:
        yield
    finally:
        errors.report = report
    if heard:
        raise heard[0]


def _files_of_asked(runner: Any, payload: Mapping[str, Any]) -> dict[str, str]:
    """Source file of each script that the request gives arguments to -> its name in the request."""
    asked = {name.lower(): name for name in payload.get("alwayson_scripts") or {}}
    titles = {script.filename: (script.title() or "").lower() for script in runner.alwayson_scripts}
    return {file: asked[title] for file, title in titles.items() if title in asked}


def _failed(name: str, failure: BaseException) -> ServiceError:
    text = " ".join(str(failure).split()) or type(failure).__name__
    # What scripts raise for arguments that they do not take, pydantic's errors among them.
    kind = BadRequest if isinstance(failure, ValueError) else EngineFailed
    return kind(text[:500], field=f"alwayson_scripts.{name}")
