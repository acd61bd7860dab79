"""What every tab of the pages works with, and who sits in front of it."""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from sd_cloud.engines.diffusion.styles import Style, read_styles
from sd_cloud.errors import CheckpointNotFound, NotAllowed, ServiceError
from sd_cloud.host.native_side import native_side
from sd_cloud.host.options import Options
from sd_cloud.job import Job, Kind
from sd_cloud.outputs.png import encode
from sd_cloud.service import Service
from sd_cloud.settings import Settings

#: Pixels that a slider needs for its label and number: two of a row stand below each other on a phone.
SIDE_BY_SIDE = 180


class NativeJob(Protocol):
    """Makes the job of a native request. Raises a ServiceError for a name that is not there."""

    async def __call__(self, kind: Kind, payload: Mapping[str, Any], *, owner: str) -> Job: ...


@dataclass(frozen=True)
class Fresh:
    """A list to choose from, and what is in it now. While it is empty it is not there, unless ``always``."""

    dropdown: gr.Dropdown
    choices: Callable[[], list[str]]
    always: bool = False

    def now(self) -> gr.Dropdown:
        choices = self.choices()
        return gr.Dropdown(choices=choices, visible=self.always or bool(choices))


@dataclass(frozen=True)
class Page:
    """The service behind the pages. Tabs ask it; they hold no state of their own."""

    service: Service
    options: Options
    settings: Settings
    native_job: NativeJob

    async def job(self, kind: Kind, payload: Mapping[str, Any], request: gr.Request) -> Job:
        """The job of a form. A person's jobs run one after the other.

        Raises CheckpointNotFound at once where there is none, not when the engine has been waited for.
        """
        if not self.service.catalogue().checkpoints:
            raise CheckpointNotFound("no checkpoint is installed: put one into models/Stable-diffusion")
        job = await self.native_job(kind, payload, owner=owner_of(request))
        return replace(job, dialect="page", order_key=order_key(request))

    def checkpoints(self) -> list[str]:
        return [one.title for one in self.service.catalogue().checkpoints]

    def vaes(self) -> list[str]:
        return ["Automatic", "None", *(one.name for one in self.service.catalogue().vaes)]

    def checkpoint(self) -> str | None:
        """The title of the checkpoint that the options mean."""
        catalogue = self.service.catalogue()
        wanted = self.options["sd_model_checkpoint"]
        found = catalogue.checkpoint(wanted) if wanted else next(iter(catalogue.checkpoints), None)
        return found.title if found is not None else None

    def native_side(self, title: str | None) -> int:
        """Pixels of a side that the checkpoint was trained on."""
        return native_side(self.service.catalogue().checkpoint(title) if title else None)

    def styles(self) -> list[str]:
        return [name for name, one in self._styles().items() if one.prompt is not None]

    def style(self, name: str) -> Style | None:
        return self._styles().get(name)

    def _styles(self) -> dict[str, Style]:
        return read_styles(self.settings.styles_patterns)


def owner_of(request: gr.Request) -> str:
    """Whom the access gate let in, or who logged in on the page."""
    caller = _caller(request)
    return caller.owner if caller is not None else request.username or "local"


def order_key(request: gr.Request) -> str:
    return f"page:{request.session_hash}"


def check_admin(request: gr.Request) -> None:
    """Raises NotAllowed unless an administrator is there: by the gate, or logged in on the page."""
    caller = _caller(request)
    if not (caller.admin if caller is not None else request.username):
        raise NotAllowed("changing the settings needs the admin role")


def _caller(request: gr.Request) -> Any:
    scope = getattr(request.request, "scope", {})
    return scope.get("sd_cloud.caller")


def told(error: ServiceError) -> gr.Error:
    """The error as the page shows it; it is the caller's, and no fault of the service's to log."""
    return gr.Error(str(error), print_exception=False)


def page_file(component: gr.Gallery | gr.Image, image: Image.Image, infotext: str) -> str:
    """A PNG that the page may show, its infotext inside; removed with the component's other files.

    Left to itself, gradio encodes pictures on the event loop. Call it in a thread.
    """
    folder = Path(component.GRADIO_CACHE) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    path = folder / "image.png"
    path.write_bytes(encode(image, "png", infotext))
    component.temp_files.add(str(path))
    return str(path)


def as_base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
