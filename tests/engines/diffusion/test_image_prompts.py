"""Image prompts of ControlNet: IP-Adapters of all kinds, T2I's style adapter, Revision.

``controlnet_pictures/`` holds what webui 1.10.1 with sd-webui-controlnet (API version 3; torch 2.1.2, CPU,
float32) answered to the requests below, with the small random files of ``image_prompt_files``: the sizes
that the extension has in its source, and no file tells, were made as small there.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_cloud.engines.diffusion.controlnet.ip_adapter import cross_attentions, transformer_places
from sd_cloud.engines.diffusion.controlnet.model import load_control_model
from sd_cloud.engines.diffusion.engine import DiffusionWorker
from sd_cloud.engines.diffusion.model import Placement, load_model
from sd_cloud.engines.diffusion.preprocess import embedding, face_parts
from sd_cloud.engines.diffusion.preprocess.table import CLIP_EVA, FACE_ID_FILES, MODULES, PULID, PULID_FILES
from sd_cloud.errors import BadRequest, CheckpointBroken, NotImplementedHere
from sd_cloud.settings import Settings
from tests.e2e.controlnet import write_controlnet
from tests.engines.diffusion import image_prompt_files as files
from tests.engines.diffusion.test_controlnet_extension import CUP, HIRES, PERSON, make, unit
from tests.golden.golden import GOLDEN, decibels, install_models

PICTURES = Path(__file__).with_name("controlnet_pictures")
AUTO, CLIP_H, CLIP_G = "ip-adapter-auto", "ip-adapter_clip_h", "ip-adapter_clip_g"
PLAIN, PLUS, FULL = "ip-adapter_sd15", "ip-adapter-plus_sd15", "ip-adapter-full-face_sd15"
FACE, PULID_XL = "ip-adapter-faceid-plusv2_sd15", "ip-adapter_pulid_sdxl_fp16"
XL: dict[str, Any] = {"checkpoint": "tiny-sdxl.safetensors"}
SHORT = {**HIRES, "hr_second_pass_steps": 2}
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")


def half() -> str:
    """White on the right."""
    buffer = io.BytesIO()
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[:, 48:] = 255
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


TWO = [{"image": PERSON}, {"image": CUP}]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "ip_two_kinds": (
        [
            unit(CLIP_H, model=PLAIN, weight=0.5, effective_region_mask=half()),
            unit(AUTO, CUP, model=PLUS, guidance_end=0.5),
        ],
        {},
    ),
    "ip_several": ([unit(AUTO, TWO, model=FULL, advanced_weighting=[i / 8 for i in range(16)])], {}),
    "ip_mask_hires": ([unit(CLIP_H, model=PLAIN, mask=half())], SHORT),
    "ip_face": ([unit(AUTO, model=FACE)], {}),
    "ip_sdxl": ([unit(AUTO, model="ip-adapter-plus_sdxl_vit-h", weight=0.8)], XL),
    "ip_instant_id": ([unit("instant_id_face_embedding", model="ip-adapter_instant_id_sdxl")], XL),
    "ip_pulid": (
        [
            unit(PULID, model=PULID_XL, weight=0.5),
            unit(PULID, CUP, model=PULID_XL, pulid_mode="Extremely style"),
        ],
        XL,
    ),
    "revision": ([unit("revision_ignore_prompt", threshold_a=0.3, weight=0.8)], {**XL, **SHORT}),
    "style": ([unit("clip_vision", model=files.STYLE)], SHORT),
}


def made_up_face(image: np.ndarray[Any, Any], recogniser: str) -> np.ndarray[Any, Any]:
    seed = int(image.astype(np.int64).sum() % 100003) + (7 if "antelope" in recogniser else 0)
    return np.random.RandomState(seed).normal(0, 3, 512).astype(np.float32)


def made_up_features(bench: object, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    large = cv2.resize(np.ascontiguousarray(image), (512, 512), interpolation=cv2.INTER_NEAREST)
    grey = large.astype(np.float32) / 255 @ np.array(face_parts.GREY, np.float32)
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = install_models(tmp_path_factory.mktemp("data"))
    for units, _ in CASES.values():
        for one in units:
            if one["model"] != "None":
                files.write_model(settings.folders.controlnets[0], one["model"])
    for name in ("control_instant_id", "control_plain"):
        write_controlnet(settings.folders.controlnets[0] / f"{name}.safetensors")
    annotators = settings.folders.annotators[0]
    files.write_clip_vision(annotators / "clip_vision")
    files.write_constants(annotators / "clip_vision")
    for name in FACE_ID_FILES + PULID_FILES:
        (annotators / name).parent.mkdir(parents=True, exist_ok=True)
        (annotators / name).touch()
    files.save_pickle(files.eva_clip(), annotators / CLIP_EVA)
    return settings


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Iterator[DiffusionWorker]:
    made = DiffusionWorker(settings)
    yield made
    made.unload()


@pytest.fixture(autouse=True)
def faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up of the picture's pixels, here and there: what sees faces is tested elsewhere."""
    monkeypatch.setattr(embedding, "faces", lambda detector, image: [0])
    monkeypatch.setattr(embedding, "largest", lambda seen, field: seen[0])
    monkeypatch.setattr(embedding, "embedding", lambda path, image, face: made_up_face(image, str(path)))
    monkeypatch.setattr(embedding, "feature_values", made_up_features)


def first(worker: DiffusionWorker, units: list[dict[str, Any]], **fields: Any) -> Image.Image:
    found = make(worker, units, **{"steps": 3, **fields}).of_role("image")[0].image
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_picture_is_the_extensions(worker: DiffusionWorker, name: str) -> None:
    units, fields = CASES[name]
    with Image.open(PICTURES / f"{name}.0.png") as theirs:
        assert decibels(theirs, first(worker, units, **fields)) >= 60


def test_the_pictures_looked_at_are_answered_and_the_model_is_left_as_it_was(worker: DiffusionWorker) -> None:
    plain = first(worker, [])
    changed = make(worker, CASES["ip_several"][0], steps=3)
    assert [one.image.size for one in changed.of_role("control_map") if one.image] == [(96, 96), (96, 64)]
    with_prompt = changed.of_role("image")[0].image
    assert with_prompt is not None and decibels(plain, with_prompt) < 40
    assert first(worker, []).tobytes() == plain.tobytes()


def test_of_pulid_the_face_that_was_looked_at_is_answered(worker: DiffusionWorker) -> None:
    (shown,) = make(worker, CASES["ip_pulid"][0][:1], steps=1, **XL).of_role("control_map")
    assert shown.image is not None and shown.image.size == (512, 512)
    pixels = np.asarray(shown.image)
    assert (pixels[:, :, 0] == pixels[:, :, 1]).all() and len(np.unique(pixels)) > 100


def encoded(tensors: Any, **how: Any) -> str:
    buffer = io.BytesIO()
    torch.save(tensors, buffer, **how)
    return base64.b64encode(buffer.getvalue()).decode()


def test_what_was_seen_elsewhere_stands_for_the_picture(worker: DiffusionWorker, settings: Settings) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(PERSON))))
    seen = embedding.embed(MODULES["ip-adapter_clip_sd15"], pixels, 512, settings, field="f").seen
    assert seen is not None
    sent = encoded(
        {
            "hidden_states": [torch.zeros(1), seen.hidden, seen.last],
            "last_hidden_state": seen.last,
            "image_embeds": seen.projected,
        }
    )
    known = {"model": PLUS, "ipadapter_input": [sent]}
    assert first(worker, [known]).tobytes() == first(worker, [unit(CLIP_H, model=PLUS)]).tobytes()


class Unknown:
    """What runs code when it is unpickled."""


@pytest.mark.parametrize(
    ("units", "fields", "field", "fact"),
    [
        ([unit(AUTO, model="ip-adapter_sd15 [12")], {}, "model", "no ControlNet model"),
        ([unit(AUTO, model="sd15")], {}, "model", "published"),
        ([unit("none", model=PLAIN)], {}, "module", "ip-adapter-auto"),
        ([unit(CLIP_G, model=PLAIN)], {}, "module", "1024 numbers.* gives 1280"),
        ([unit("ip-adapter_face_id", model=PLAIN)], {}, "module", "gives none"),
        ([unit(PULID, model=FACE)], {}, "module", "gives none"),
        ([unit("instant_id_face_embedding", model=PULID_XL)], XL, "module", "ip-adapter_pulid.*does not"),
        ([unit("ip-adapter_face_id", model=files.STYLE)], {}, "module", "clip_vision"),
        ([unit(CLIP_H, model=PLAIN)], XL, "model", "another family.*16 layers"),
        ([unit("clip_vision", model=files.STYLE)], XL, "model", "another family"),
        ([unit(CLIP_H, model=PLAIN, advanced_weighting=[1] * 15)], {}, "advanced_weighting", "16"),
        ([unit("revision_clipvision")], {}, "module", "SDXL"),
        (
            [unit("revision_clipvision", effective_region_mask=CUP)],
            XL,
            "effective_region_mask",
            "IP-Adapters",
        ),
        ([unit("clip_vision", TWO, model=files.STYLE)], {}, "image", "merge"),
        ([{"module": CLIP_H, "model": PLAIN}], {}, "image", "no image"),
        ([{"model": PLAIN, "ipadapter_input": ["%"]}], {}, "ipadapter_input", "base64"),
        ([{"model": PLAIN, "ipadapter_input": encoded(Unknown())}], {}, "ipadapter_input", "tensors only"),
        ([{"model": PLAIN, "ipadapter_input": encoded({})}], {}, "ipadapter_input", "lacks"),
    ],
)
def test_what_does_not_go_together_is_named(
    worker: DiffusionWorker, units: list[dict[str, Any]], fields: dict[str, Any], field: str, fact: str
) -> None:
    with pytest.raises(Exception, match=rf"(?s)^alwayson_scripts\.controlnet\.args\[0\]\.{field}: .*{fact}"):
        first(worker, units, **fields)


def test_instant_ids_controlnet_is_told_the_face_of_the_adapter_before_it(worker: DiffusionWorker) -> None:
    face = unit("ip-adapter_face_id_plus", model=FACE)
    named, unnamed = (unit("canny", model=name) for name in ("control_instant_id", "control_plain"))
    told, prompted = first(worker, [face, named]), first(worker, [face, unnamed])
    assert decibels(told, prompted) < 60
    for order in ([named], [named, face], [unit("canny", model="control_plain"), named]):
        with pytest.raises(BadRequest, match=r"\.model: .*the unit before it"):
            first(worker, order)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        (PLAIN, "image_proj.norm.bias"),
        (PLAIN, "ip_adapter.7.to_v_ip.weight"),
        (PLUS, "image_proj.layers.2.0.to_q.weight"),
        (files.STYLE, "transformer_layes.1.ln_1.bias"),
    ],
)
def test_a_file_that_lacks_a_tensor_is_named(
    tmp_path: Path, unet: UNet2DConditionModel, name: str, lost: str
) -> None:
    path = files.write_model(tmp_path, name)
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    del state[lost]
    save_file(state, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointBroken, match=r"file\.safetensors"):
        loaded(tmp_path / "file.safetensors", unet)


def loaded(path: Path, unet: UNet2DConditionModel) -> object:
    return load_control_model(path, unet, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    golden = GOLDEN / "checkpoints"
    return load_model(golden / "tiny-a.safetensors", golden / "tiny-a.yaml", Placement()).unet


def test_without_the_extensions_numbers_nothing_is_what_the_network_sees_of_it(tmp_path: Path) -> None:
    settings = install_models(tmp_path)
    with pytest.raises(NotImplementedHere, match=r"clip_vision/clip_h\.pth"):
        embedding.hidden_of_nothing(settings, field="f")
    folder = settings.folders.annotators[0] / "clip_vision"
    files.write_clip_vision(folder)
    own = embedding.hidden_of_nothing(settings, field="f")
    files.write_constants(folder)
    kept = embedding.hidden_of_nothing(settings, field="f")
    assert own.shape == kept.shape == (1, files.PATCHES, files.HIDDEN) and not torch.allclose(own, kept)


def unet_of(**config: Any) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}


@pytest.mark.parametrize(("config", "layers", "transformers"), [(SD15, 16, 16), (SDXL, 70, 11)])
def test_published_adapters_have_a_layer_for_each_cross_attention(
    config: dict[str, Any], layers: int, transformers: int
) -> None:
    unet = unet_of(**config)
    places = transformer_places(unet)
    assert len(cross_attentions(unet)) == len(places) == layers
    assert sorted(set(places)) == list(range(transformers))
    # The encoder's first, then the decoder's, and the middle's last, which runs between them.
    middle = 6 if transformers == 16 else 4
    assert places[0] == 0 and places[-1] == middle and middle not in places[: -places.count(middle)]
