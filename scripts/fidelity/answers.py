"""What a webui, or our service, answered to a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from scripts.fidelity import pictures
from scripts.fidelity.case import BASE, Case

WITH_INFO = ("txt2img", "img2img")
SEED_ONLY: dict[str, Any] = {**BASE, "steps": 1, "width": 64, "height": 64, "sampler_name": "Euler"}


@dataclass(frozen=True)
class Answer:
    """``info``: the ``info`` object of txt2img and img2img, else what is beside the pictures."""

    status: int
    pictures: tuple[Image.Image, ...] = ()
    info: Mapping[str, Any] | None = None
    refusal: str = ""

    @property
    def infotexts(self) -> list[str]:
        return list((self.info or {}).get("infotexts", ()))


class Asked:
    """One of the two sides. With ``keep``, answers are kept in that folder and not asked for again.

    ``remembers``: each case is preceded by another job, see :meth:`_start_afresh`.
    """

    def __init__(self, url: str, keep: Path | None = None, *, remembers: bool = False) -> None:
        self.remembers = remembers
        self.client = httpx.Client(base_url=f"{url.rstrip('/')}/sdapi/v1", timeout=600, trust_env=False)
        self.keep = keep

    def answer(self, case: Case) -> Answer:
        asked = json.dumps([case.route, case.request, case.options], sort_keys=True)
        kept = None if self.keep is None else self.keep / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
        if kept is not None and kept.exists():
            status, body = json.loads(kept.read_text("utf-8"))
            return _read(case, status, body)
        if self.remembers and case.route in WITH_INFO:
            self._start_afresh(case, asked)
        with self._under(case.options):
            response = self.client.post(f"/{case.route}", json=case.request)
        try:
            body = response.json()
        except json.JSONDecodeError:
            body = {"detail": response.text}
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([response.status_code, body]), "utf-8")
        return _read(case, response.status_code, body)

    def save_options(self) -> None:
        """Have every option saved: a webui restores only those after a job that overrides them."""
        options = self.client.get("/options").raise_for_status().json()
        given = {name: value for name, value in options.items() if value is not None}
        own = {
            "upscaler_for_img2img": "None",
            "show_progress_type": "Approx cheap",  # the others want weights, which it would download
        }
        self.client.post("/options", json={**given, **own}).raise_for_status()

    @contextmanager
    def _under(self, options: Mapping[str, Any]) -> Iterator[None]:
        if not options:
            yield
            return
        before = self.client.get("/options").raise_for_status().json()
        self.client.post("/options", json=dict(options)).raise_for_status()
        try:
            yield
        finally:
            own = {name: before[name] for name in options}
            self.client.post("/options", json=own).raise_for_status()

    def _start_afresh(self, case: Case, asked: str) -> None:
        """Undo what the job before left behind in the webui.

        Its img2img encodes the picture with noise of the global random generator, as that job left
        it (we define it to be as after a job with this job's seed); and its cache of the prompt's
        encoding does not notice a change of some options.
        """
        other = hashlib.sha256(asked.encode()).hexdigest()[:8]
        prompts = {"prompt": f"before {other}", "negative_prompt": f"not {other}"}
        # img2img: it seeds the generator last of all, where txt2img may draw from it again.
        image = pictures.base64_of(Image.new("RGB", (64, 64), "grey"))
        own: dict[str, Any] = {"seed": case.request.get("seed", -1)}
        # The same checkpoint: loading one draws random numbers, too.
        checkpoint = (case.request.get("override_settings") or {}).get("sd_model_checkpoint")
        if checkpoint:
            own["override_settings"] = {"sd_model_checkpoint": checkpoint}
        # And the same control models: building one draws some as well, which preprocessors may do, too.
        units = (case.request.get("alwayson_scripts") or {}).get("controlnet", {}).get("args")
        if units:
            plain = [{**unit, "module": "none", "mask": None} for unit in units]
            own["alwayson_scripts"] = {"controlnet": {"args": plain}}
        self.client.post("/img2img", json={**SEED_ONLY, **prompts, **own, "init_images": [image]})


def _read(case: Case, status: int, body: Any) -> Answer:
    if status != 200:
        return Answer(status, refusal=_refusal(body))
    if case.route in WITH_INFO:
        made = tuple(pictures.image_of(text) for text in body["images"])
        return Answer(status, made, json.loads(body["info"]))
    texts = body.pop("images", None) or [text for text in [body.pop("image", None)] if text]
    return Answer(status, tuple(pictures.image_of(text) for text in texts), body)


def _refusal(body: Any) -> str:
    if not isinstance(body, dict):
        return str(body)
    return str(body.get("errors") or body.get("detail") or body.get("message") or body)
