"""``--enable-nsfw-censor``: every picture the webui makes, for whomever, is checked before it leaves.

The webui's page, its own API and our jobs all come through here: what is saved, what is returned
and what is shown while it is being made. A picture that could not be checked does not leave.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from PIL import Image

from sd_cloud.engines.webui_answer import CENSORED

log = logging.getLogger(__name__)

#: In ``info.extra_generation_params``: one truth value per picture, in their order.
INFO_KEY = CENSORED
INFOTEXT_KEY = "NSFW censored"
TITLE = "sd-cloud-api: check of pictures"
#: On a picture that has been through here.
_MARK = "_sd_cloud_checked"

Clean = Callable[[Image.Image], Image.Image]


class Checking:
    """Checks pictures, each once. ``clean`` is a `Censor`'s, made at the first picture."""

    def __init__(self, make: Callable[[], Clean]) -> None:
        self._make = make
        self._clean: Clean | None = None
        self._making = threading.Lock()

    def __call__(self, image: Image.Image) -> tuple[Image.Image, bool]:
        """The picture that may leave, and whether something in it was blurred."""
        if getattr(image, _MARK, False):
            return image, False
        try:
            checked = self._detector()(image)
        except Exception:
            log.exception("sd-cloud-api: a picture could not be checked and is blacked out")
            checked = Image.new("RGB", image.size)
        if checked is not image:
            checked.info = dict(image.info)
        setattr(checked, _MARK, True)
        return checked, checked is not image

    def _detector(self) -> Clean:
        with self._making:
            if self._clean is None:
                self._clean = self._make()
            return self._clean


def nudenet_clean() -> Clean:
    from sd_cloud.safety import Censor

    return Censor().clean


def censor_scripts(checking: Checking) -> tuple[type[Any], type[Any]]:
    """The webui's script classes of the check, for making pictures and for its Extras; their other
    hooks are registered."""
    from modules import script_callbacks, scripts, scripts_postprocessing, shared

    class CensorScript(scripts.Script):  # type: ignore[misc]
        # Behind what other extensions do to a picture.
        sorting_priority = 1000

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            return []

        def process(self, p: Any, *args: Any) -> None:
            flags = p.sd_cloud_censored = []
            p.extra_generation_params.pop(INFO_KEY, None)
            p.extra_generation_params[INFOTEXT_KEY] = lambda index=0, **_: _told(p, flags, index)

        def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
            pp.image, was_censored = checking(pp.image)
            p.sd_cloud_censored.append(was_censored)

        def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
            processed.images[:] = [checking(one)[0] if is_image(one) else one for one in processed.images]
            processed.extra_generation_params.pop(INFOTEXT_KEY, None)
            processed.extra_generation_params[INFO_KEY] = list(p.sd_cloud_censored)

    class CensorExtras(scripts_postprocessing.ScriptPostprocessing):  # type: ignore[misc]
        name = TITLE
        order = 100_000

        def ui(self) -> dict[str, Any]:
            return {}

        def process(self, pp: Any, **args: Any) -> None:
            pp.image, was_censored = checking(pp.image)
            if was_censored:
                pp.info[INFOTEXT_KEY] = "blurred"

    def before_save(params: Any) -> None:
        params.image, _ = checking(params.image)

    script_callbacks.on_before_image_saved(before_save)
    _check_previews(shared.state, checking)
    return CensorScript, CensorExtras


def _told(p: Any, flags: list[bool], index: int | None) -> str | None:
    """The infotext's value of the picture at ``index`` of the batch that is being made."""
    place = p.iteration * p.batch_size + (index or 0)
    return "blurred" if place < len(flags) and flags[place] else None


def _check_previews(state: Any, checking: Checking) -> None:
    shown = type(state).assign_current_image

    def assign_current_image(image: Image.Image) -> None:
        shown(state, checking(image)[0])

    state.assign_current_image = assign_current_image


def is_image(one: Any) -> bool:
    return isinstance(one, Image.Image)
