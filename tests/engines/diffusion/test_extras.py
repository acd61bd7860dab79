"""The webui's extras: sizes, crops, blends, what html_info says, and what is refused."""

from __future__ import annotations

import base64
import io
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.extras import run_extras
from sd_cloud.errors import BadRequest, Cancelled, NotImplementedHere
from sd_cloud.job import Job, Outcome, Progress
from sd_cloud.settings import Settings, settings_below


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path)


def picture(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4}[mode]
    return Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (height, width, channels), dtype=np.uint8), mode
    )


def encoded(image: Image.Image, **text: str) -> str:
    about = PngInfo()
    for key, value in text.items():
        about.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=about)
    return base64.b64encode(buffer.getvalue()).decode()


def run(settings: Settings, payload: Mapping[str, Any], control: Control | None = None) -> Outcome:
    return run_extras(Job("extras", payload), lambda _: None, control or Control(), settings=settings)


def made(outcome: Outcome) -> Image.Image:
    image = outcome.pictures[0].image
    assert image is not None
    return image


def test_a_single_image_is_upscaled_by_a_factor(settings: Settings) -> None:
    image = picture()
    outcome = run(settings, {"image": encoded(image), "upscaling_resize": 2.0, "upscaler_1": "Lanczos"})
    assert made(outcome).tobytes() == image.resize((80, 48), Image.LANCZOS).tobytes()
    assert outcome.info == {"html_info": "<p>Postprocess upscale by: 2.0, Postprocess upscaler: Lanczos</p>"}


def test_without_an_upscaler_the_image_comes_back_as_it_is(settings: Settings) -> None:
    image = picture()
    outcome = run(settings, {"image": "data:image/png;base64," + encoded(image), "upscaling_resize": 4})
    assert made(outcome).tobytes() == image.tobytes()
    assert outcome.info == {"html_info": "<p></p>"}


@pytest.mark.parametrize(("crop", "size"), [(True, (64, 64)), (False, (104, 64))])
def test_to_a_size_with_and_without_crop(settings: Settings, crop: bool, size: tuple[int, int]) -> None:
    outcome = run(
        settings,
        {
            "image": encoded(picture()),
            "resize_mode": 1,
            "upscaling_resize_w": 64,
            "upscaling_resize_h": 64,
            "upscaling_crop": crop,
            "upscaler_1": "Nearest",
        },
    )
    assert made(outcome).size == size
    assert ("Postprocess crop to: 64x64" in outcome.info["html_info"]) is crop
    assert "Postprocess upscale to: 64x64" in outcome.info["html_info"]


def test_the_second_upscaler_shows_through_by_its_visibility(settings: Settings) -> None:
    image = picture()
    payload = {"image": encoded(image), "upscaler_1": "Nearest", "upscaler_2": "Lanczos"}
    outcome = run(settings, {**payload, "extras_upscaler_2_visibility": 0.25})
    nearest, lanczos = (image.resize((80, 48), how) for how in (Image.NEAREST, Image.LANCZOS))
    assert made(outcome).tobytes() == Image.blend(nearest, lanczos, 0.25).tobytes()
    assert outcome.info["html_info"].endswith("Postprocess upscaler 2: Lanczos</p>")


def test_transparency_is_kept_by_the_plain_upscalers(settings: Settings) -> None:
    assert (
        made(run(settings, {"image": encoded(picture(mode="RGBA")), "upscaler_1": "Lanczos"})).mode == "RGBA"
    )


def test_a_batch_is_done_one_by_one_and_keeps_generation_data(settings: Settings) -> None:
    seen: list[Progress] = []
    images = [{"data": encoded(picture(), parameters="a cat\nSteps: 1"), "name": "one.png"}]
    images.append({"data": encoded(picture(16, 16)), "name": "two.png"})
    job = Job("extras", {"imageList": images, "upscaler_1": "Nearest"})
    outcome = run_extras(job, seen.append, Control(), settings=settings)
    assert [one.image.size for one in outcome.pictures if one.image] == [(80, 48), (32, 32)]
    assert [(one.job_no, one.job_count) for one in seen] == [(0, 2), (1, 2)]
    assert [one.infotext for one in outcome.pictures] == ["a cat\nSteps: 1", ""]
    assert made(outcome).info["postprocessing"].startswith("Postprocess upscale by: 2")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"image": "no picture"}, "image"),
        ({"imageList": [{"data": "x", "name": "n"}]}, r"imageList\[0\]\.data"),
        ({"imageList": "x"}, "imageList"),
        ({"upscaler_1": "4x-none"}, "upscaler_1"),
        ({"upscaler_2": "4x-none"}, "upscaler_2"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"upscaling_resize": 0}, "upscaling_resize"),
        ({"upscaling_resize": "2"}, "upscaling_resize"),
        ({"extras_upscaler_2_visibility": 1.5}, "extras_upscaler_2_visibility"),
        ({"upscaling_resize": 0.01, "upscaler_1": "Lanczos"}, "upscaler_1"),
    ],
)
def test_a_wrong_field_is_named(settings: Settings, change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: "):
        run(settings, {"image": encoded(picture()), **change})


@pytest.mark.parametrize("name", ["gfpgan_visibility", "codeformer_visibility"])
def test_faces_without_weights_are_refused_by_name_and_zero_is_not(settings: Settings, name: str) -> None:
    run(settings, {"image": encoded(picture()), name: 0})
    with pytest.raises(NotImplementedHere, match=f"^{name}: no weights for"):
        run(settings, {"image": encoded(picture()), name: 0.5})


class Brighter(torch.nn.Module):
    """In the place of a face network: the face, brighter by a quarter."""

    different_w = False

    def forward(self, face: torch.Tensor, **how: Any) -> list[torch.Tensor]:
        assert face.shape == (1, 3, 512, 512) and float(face.abs().max()) <= 1
        Brighter.asked = how
        return [face + 0.5]

    asked: ClassVar[dict[str, Any]] = {}


class Faces:
    """In the place of facexlib: the whole picture is the one face."""

    def __init__(self, **how: Any) -> None:
        assert how["face_size"] == 512 and Path(how["model_rootpath"]).is_dir()
        self.cropped_faces: list[Any] = []
        self.restored: list[Any] = []

    def clean_all(self) -> None:
        self.cropped_faces, self.restored = [], []

    def read_image(self, pixels: Any) -> None:
        self.picture = Image.fromarray(np.ascontiguousarray(pixels))

    def get_face_landmarks_5(self, **how: Any) -> None:
        assert how == {"only_center_face": False, "resize": 640, "eye_dist_threshold": 5}

    def align_warp_face(self) -> None:
        self.cropped_faces = [np.asarray(self.picture.resize((512, 512), Image.Resampling.NEAREST))]

    def add_restored_face(self, face: Any) -> None:
        self.restored.append(Image.fromarray(np.ascontiguousarray(face)))

    def get_inverse_affine(self, path: None) -> None: ...

    def paste_faces_to_input_image(self) -> Any:
        return np.asarray(self.restored[0].resize(self.picture.size, Image.Resampling.NEAREST))


@pytest.fixture
def with_face_packages(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from sd_cloud.engines.diffusion import extras_faces

    extras_faces._network.cache_clear()
    extras_faces._helper.cache_clear()
    for folder, name in (
        (settings.folders.gfpgan[0], "GFPGANv1.4"),
        (settings.folders.codeformer[0], "codeformer-v0.1.0"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.pth").write_bytes(b"weights")
    for name in extras_faces.FINDER_FILES:
        (settings.folders.gfpgan[0] / name).write_bytes(b"weights")

    class Loader:
        def __init__(self, device: str) -> None: ...

        def load_from_file(self, path: str) -> Any:
            return types.SimpleNamespace(model=Brighter())

    packages = {
        "spandrel": types.SimpleNamespace(ModelLoader=Loader),
        "facexlib": types.ModuleType("facexlib"),
        "facexlib.utils": types.ModuleType("facexlib.utils"),
        "facexlib.utils.face_restoration_helper": types.SimpleNamespace(FaceRestoreHelper=Faces),
    }
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("with_face_packages")
def test_faces_are_restored_where_packages_and_weights_are_there(settings: Settings) -> None:
    image = picture()
    plain = np.asarray(image).astype(int)
    whole = run(settings, {"image": encoded(image), "gfpgan_visibility": 1.0})
    wanted = np.clip(plain + 63.75, 0, 255)
    assert np.abs(np.asarray(made(whole)).astype(int) - wanted).max() <= 2
    assert whole.info["html_info"] == "<p>GFPGAN visibility: 1.0</p>"
    assert Brighter.asked == {"return_rgb": False}

    half = run(settings, {"image": encoded(image), "codeformer_visibility": 0.5, "codeformer_weight": 0.3})
    assert np.abs(np.asarray(made(half)).astype(int) - (plain + wanted) / 2).max() <= 2
    assert half.info["html_info"] == "<p>CodeFormer visibility: 0.5, CodeFormer weight: 0.3</p>"
    assert Brighter.asked == {"weight": 0.3, "adain": True}


@pytest.mark.usefixtures("with_face_packages")
def test_what_restoring_faces_lacks_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = {"image": encoded(picture()), "gfpgan_visibility": 1.0}
    monkeypatch.setitem(sys.modules, "facexlib", None)
    with pytest.raises(NotImplementedHere, match=r"^gfpgan_visibility: GFPGAN needs the package facexlib"):
        run(settings, payload)
    (settings.folders.gfpgan[0] / "parsing_parsenet.pth").unlink()
    with pytest.raises(NotImplementedHere, match=r"parsing_parsenet\.pth"):
        run(settings, payload)


def test_cancelling_drops_and_interrupting_keeps(settings: Settings) -> None:
    images = [{"data": encoded(picture()), "name": str(n)} for n in range(3)]
    payload = {"imageList": images, "upscaler_1": "Lanczos"}

    cancelled = Control()
    cancelled.ask("cancel")
    with pytest.raises(Cancelled):
        run(settings, payload, cancelled)

    control = Control()
    asked = iter(["go", "go", "interrupt"])
    job = Job("extras", payload)
    outcome = run_extras(job, lambda _: control.ask(next(asked)), control, settings=settings)  # type: ignore[arg-type]
    assert outcome.interrupted and len(outcome.pictures) == 2


def test_skipping_goes_on_to_the_next_picture(settings: Settings) -> None:
    images = [{"data": encoded(picture(16 * (n + 1), 16)), "name": str(n)} for n in range(2)]
    control = Control()
    control.ask("skip")
    outcome = run(settings, {"imageList": images, "upscaler_1": "Lanczos"}, control)
    assert [one.image.width for one in outcome.pictures if one.image] == [64]
