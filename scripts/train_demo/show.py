"""The card's pictures of what a running service does with the checkpoints: `python -m train_demo.show`.

Start the service on the demo's models first (`demo/MODEL_CARD.md` has the command).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .sheets import save_sheet

REPOSITORY = Path(__file__).parents[2]
SHOWN = 192
ANSWER_SECONDS = 300
COMMON: dict[str, Any] = {
    "width": 64,
    "height": 64,
    "steps": 20,
    "sampler_name": "Euler",
    "cfg_scale": 3,
    "seed": 3,
}


class Service:
    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def picture(self, route: str, **fields: Any) -> Image.Image:
        body = json.dumps({**COMMON, **fields}).encode()
        request = urllib.request.Request(
            f"{self._url}/sdapi/v1/{route}", body, {"Content-Type": "application/json"}
        )
        with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
            first = json.load(answer)["images"][0]
        return Image.open(io.BytesIO(base64.b64decode(first))).convert("RGB")


def as_base64(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def save_row(path: Path, pictures: list[Image.Image]) -> None:
    enlarged = [np.asarray(p.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)) for p in pictures]
    save_sheet(path, np.stack(enlarged), columns=len(enlarged))


def draw_all(service: Service, images: Path) -> None:
    rocket = service.picture("txt2img", prompt="a rocket")
    save_row(
        images / "styles.png",
        [
            service.picture("txt2img", prompt=f"a rose{word}")
            for word in ("", ", noto style", ", twemoji style", ", fluent style")
        ],
    )
    save_row(
        images / "checkpoints.png",
        [
            service.picture("txt2img", prompt="a house"),
            service.picture(
                "txt2img",
                prompt="a house",
                override_settings={"sd_model_checkpoint": "ink.safetensors"},
            ),
            service.picture("txt2img", prompt="a house <lora:cyanotype:1>"),
        ],
    )
    apple = service.picture("txt2img", prompt="a red apple")
    save_row(
        images / "img2img.png",
        [apple]
        + [
            service.picture(
                "img2img",
                prompt="a green apple",
                init_images=[as_base64(apple)],
                denoising_strength=strength,
            )
            for strength in (0.4, 0.6, 0.8)
        ],
    )
    face = service.picture("txt2img", prompt="a smiling face with sunglasses")
    mask = Image.new("L", face.size, 0)
    ImageDraw.Draw(mask).rectangle([0, 0, 63, 33], fill=255)
    save_row(
        images / "inpainting.png",
        [
            face,
            mask.convert("RGB"),
            service.picture(
                "img2img",
                prompt="smiling face with heart-eyes",
                init_images=[as_base64(face)],
                mask=as_base64(mask),
                denoising_strength=0.9,
                inpainting_fill=1,
                inpaint_full_res=False,
            ),
        ],
    )
    hires = {"enable_hr": True, "hr_scale": 4, "hr_upscaler": "Lanczos", "denoising_strength": 0}
    save_row(images / "hires.png", [rocket, service.picture("txt2img", prompt="a rocket", **hires)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="train_demo.show", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--images", type=Path, default=REPOSITORY / "demo" / "images")
    options = parser.parse_args()
    draw_all(Service(options.url), options.images)


if __name__ == "__main__":
    main()
