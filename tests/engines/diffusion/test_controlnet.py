"""A ControlNet inside the U-Net: what its file means, when and how strongly it steers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.controlnet.call import Call, inpaint_hint
from sd_cloud.engines.diffusion.controlnet.control import Control
from sd_cloud.engines.diffusion.controlnet.maps import (
    Canvas,
    fit,
    map_seed,
    perfect_resolution,
    thin,
    unit_image,
)
from sd_cloud.engines.diffusion.controlnet.model import load_controlnet
from sd_cloud.engines.diffusion.controlnet.preparing import Surroundings, prepare
from sd_cloud.engines.diffusion.controlnet.shelf import ControlNetShelf
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit
from sd_cloud.engines.diffusion.model import Model, Placement, load_model
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.engines.diffusion.weights_file import read_tensors
from sd_cloud.errors import BadRequest, CheckpointBroken, NotImplementedHere
from sd_cloud.settings import settings_below

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "checkpoints"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")

UNET = "model.diffusion_model."
WIDTHS = [32, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128]
HINT = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 32)]

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(GOLDEN / "tiny-a.safetensors", GOLDEN / "tiny-a.yaml", Placement())


@pytest.fixture(scope="module")
def encoder() -> Tensors:
    """The U-Net's own encoder as a ControlNet starts its training: a copy."""
    tensors = read_tensors(GOLDEN / "tiny-a.safetensors")
    parts = ("time_embed.", "input_blocks.", "middle_block.")
    own = {key[len(UNET) :]: value.float() for key, value in tensors.items() if key.startswith(UNET)}
    return {key: value for key, value in own.items() if key.startswith(parts)}


def controlnet(encoder: Tensors, zero: Callable[[int], torch.Tensor], hint_scale: float = 1.0) -> Tensors:
    """A ControlNet in the LDM layout; ``zero`` makes the 1 x 1 convolutions of a width."""
    random = torch.Generator().manual_seed(11)
    made = dict(encoder)
    for place, (before, after) in enumerate(HINT):
        scale = hint_scale if place == len(HINT) - 1 else 1.0
        made[f"input_hint_block.{2 * place}.weight"] = (
            torch.randn(after, before, 3, 3, generator=random) * 0.1 * scale
        )
        made[f"input_hint_block.{2 * place}.bias"] = torch.zeros(after)
    for place, width in enumerate(WIDTHS):
        made[f"zero_convs.{place}.0.weight"] = zero(width)
        made[f"zero_convs.{place}.0.bias"] = torch.zeros(width)
    made["middle_block_out.0.weight"] = zero(128)
    made["middle_block_out.0.bias"] = torch.zeros(128)
    return made


def identity(width: int) -> torch.Tensor:
    return torch.eye(width)[:, :, None, None]


def nothing(width: int) -> torch.Tensor:
    return torch.zeros(width, width, 1, 1)


def written(path: Path, tensors: Tensors, prefix: str = "control_model.") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {prefix + key: value.contiguous().clone() for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save({"state_dict": named}, path)
    return path


def call(rows: int = 2, **changes: Any) -> Call:
    random = torch.Generator().manual_seed(5)
    values: dict[str, Any] = {
        "latents": torch.randn(rows, 4, 8, 8, generator=random),
        "timesteps": torch.full((rows,), 500.25),
        "context": torch.randn(rows, 77, 64, generator=random),
        "labels": None,
        "positive": torch.tensor([True, False][:rows]),
    }
    return Call(**{**values, **changes})


def denoised(model: Model, control: Control | None, at: Call) -> torch.Tensor:
    added = control.residuals(at) if control else None
    return model.unet(
        at.latents,
        at.timesteps,
        at.context,
        down_block_additional_residuals=added.down if added else None,
        mid_block_additional_residual=added.middle if added else None,
        return_dict=False,
    )[0]


class Bench:
    """Prepares units against one model and one installed ControlNet."""

    def __init__(self, model: Model, folder: Path, tensors: Tensors, name: str = "random") -> None:
        self.model = model
        self.settings = settings_below(folder)
        path = written(self.settings.folders.controlnets[0] / f"{name}.safetensors", tensors)
        self.models = (ModelFile(f"{name} [0]", str(path), {"stem": name}),)
        self.options: dict[str, Any] = {}
        self.shelf = ControlNetShelf()

    def prepare(self, *units: ControlUnit, canvas: Canvas | None = None) -> Control:
        found = prepare(
            units,
            canvas or Canvas((64, 64), seed=1),
            Surroundings(
                settings=self.settings,
                models=self.models,
                unet=self.model.unet,
                shelf=self.shelf,
                encode=self.encode,
                encode_early=self.encode,
                draw=lambda shape: torch.zeros(tuple(shape)),
                option=lambda name, default: self.options.get(name, default),
            ),
        )
        assert found is not None
        return found

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model.vae.encode(pixels).latent_dist.mode() * 0.18215


@pytest.fixture
def bench(model: Model, tmp_path: Path, encoder: Tensors) -> Bench:
    random = torch.Generator().manual_seed(3)
    return Bench(
        model,
        tmp_path,
        controlnet(encoder, lambda width: torch.randn(width, width, 1, 1, generator=random) * 0.1),
    )


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height))


def unit(**changes: Any) -> ControlUnit:
    values: dict[str, Any] = {
        "number": 0,
        "field": "args[0]",
        "module": MODULES["none"],
        "model": "random",
        "image": photo(),
    }
    return ControlUnit(**{**values, **changes})


# --- files --------------------------------------------------------------------------------------


def test_a_copy_of_the_encoder_gives_the_unets_own_features(
    model: Model, encoder: Tensors, tmp_path: Path
) -> None:
    path = written(tmp_path / "copy.safetensors", controlnet(encoder, identity, hint_scale=0.0))
    net = load_controlnet(path, model.unet, device=torch.device("cpu"), dtype=torch.float32).net
    at = call()
    seen: list[torch.Tensor] = []
    hooks = [
        model.unet.mid_block.register_forward_hook(lambda module, args, out: seen.append(out)),
        model.unet.down_blocks[1].register_forward_hook(lambda module, args, out: seen.extend(out[1])),
    ]
    with torch.no_grad():
        denoised(model, None, at)
        down, middle = net(
            at.latents, at.timesteps, at.context, controlnet_cond=torch.zeros(1, 3, 64, 64), return_dict=False
        )
    for hook in hooks:
        hook.remove()
    for ours, theirs in zip([*down[4:7], middle], seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "prefix"), [("a.safetensors", ""), ("b.pth", "control_model."), ("c.pth", "")]
)
def test_every_form_of_the_file_gives_the_same_network(
    model: Model, encoder: Tensors, tmp_path: Path, name: str, prefix: str
) -> None:
    tensors = controlnet(encoder, identity)
    plain = written(tmp_path / "plain.safetensors", tensors)
    other = written(tmp_path / name, tensors, prefix)
    one, two = (
        load_controlnet(path, model.unet, device=torch.device("cpu"), dtype=torch.float32).net.state_dict()
        for path in (plain, other)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_diffusers_file_is_read_too(model: Model, encoder: Tensors, tmp_path: Path) -> None:
    path = written(tmp_path / "ldm.safetensors", controlnet(encoder, identity))
    net = load_controlnet(path, model.unet, device=torch.device("cpu"), dtype=torch.float32).net
    again = written(tmp_path / "diffusers.safetensors", net.state_dict(), prefix="")
    loaded = load_controlnet(again, model.unet, device=torch.device("cpu"), dtype=torch.float32).net
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items())


def test_a_difference_is_added_to_the_unets_weights(model: Model, encoder: Tensors, tmp_path: Path) -> None:
    whole = controlnet(encoder, identity)
    difference = {key: torch.zeros_like(value) if key in encoder else value for key, value in whole.items()}
    difference["difference"] = torch.ones(())
    paths = written(tmp_path / "a.pth", whole), written(tmp_path / "b.pth", difference, prefix="")
    one, two = (
        load_controlnet(path, model.unet, device=torch.device("cpu"), dtype=torch.float32) for path in paths
    )
    assert two.bound and not one.bound
    first, second = one.net.state_dict(), two.net.state_dict()
    assert all(torch.allclose(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("change", "error", "fact"),
    [
        (lambda t: {"a": torch.zeros(1)}, CheckpointBroken, "is not a ControlNet"),
        (
            lambda t: {k: v for k, v in t.items() if "zero_convs.3" not in k},
            CheckpointBroken,
            "lacks 2 tensors",
        ),
        (lambda t: {"down_blocks.0.motion_modules.0": torch.zeros(1)}, NotImplementedHere, "AnimateDiff"),
    ],
)
def test_what_is_no_controlnet_is_named(
    model: Model, encoder: Tensors, tmp_path: Path, change: Any, error: type[Exception], fact: str
) -> None:
    path = written(tmp_path / "file.safetensors", change(controlnet(encoder, nothing)), prefix="")
    with pytest.raises(error, match=rf"file\.safetensors.*{fact}"):
        load_controlnet(path, model.unet, device=torch.device("cpu"), dtype=torch.float32)


def test_a_controlnet_of_another_family_is_refused(bench: Bench) -> None:
    other = load_model(GOLDEN / "tiny-sd2v.safetensors", GOLDEN / "tiny-sd2v.yaml", Placement())
    bench.model = other
    with pytest.raises(
        BadRequest, match=r"args\[0\]\.model: random\.safetensors is made for checkpoints of another"
    ):
        bench.prepare(unit())


def test_a_loaded_network_is_kept_and_let_go(bench: Bench) -> None:
    first = bench.prepare(unit()).units[0].network
    assert bench.prepare(unit()).units[0].network is first
    bench.options["control_net_model_cache_size"] = 0
    bench.shelf.clear()
    assert bench.prepare(unit()).units[0].network is not bench.prepare(unit()).units[0].network


# --- steering -----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_network_of_zero_convolutions_changes_nothing(
    model: Model, encoder: Tensors, tmp_path: Path
) -> None:
    control = Bench(model, tmp_path, controlnet(encoder, nothing)).prepare(unit())
    assert torch.equal(denoised(model, control, call()), denoised(model, None, call()))


@torch.no_grad()
def test_weight_scales_what_is_added(model: Model, bench: Bench) -> None:
    full = bench.prepare(unit()).residuals(call())
    half = bench.prepare(unit(weight=0.5)).residuals(call())
    assert full is not None and half is not None
    for one, two in zip((*full.down, full.middle), (*half.down, half.middle), strict=True):
        torch.testing.assert_close(one * 0.5, two)
    assert not torch.allclose(denoised(model, bench.prepare(unit()), call()), denoised(model, None, call()))


def test_it_steers_only_within_its_window(bench: Bench) -> None:
    control = bench.prepare(unit(guidance_start=0.25, guidance_end=0.75))
    working = [control.residuals(call(progress=step / 8)) is not None for step in range(8)]
    assert working == [False, False, True, True, True, True, True, False]


@torch.no_grad()
def test_units_add_up(bench: Bench) -> None:
    one, two = unit(), unit(number=1, image=photo(seed=9), weight=0.7)
    both = bench.prepare(one, two).residuals(call())
    first, second = (bench.prepare(each).residuals(call()) for each in (one, two))
    assert both is not None and first is not None and second is not None
    torch.testing.assert_close(both.middle, first.middle + second.middle)
    torch.testing.assert_close(both.down[5], first.down[5] + second.down[5])


@torch.no_grad()
def test_control_modes_weigh_layers_and_prompts(bench: Bench) -> None:
    plain = bench.prepare(unit()).residuals(call())
    soft = bench.prepare(unit(control_mode="My prompt is more important")).residuals(call())
    strict = bench.prepare(unit(control_mode="ControlNet is more important")).residuals(call())
    assert plain is not None and soft is not None and strict is not None
    layers = list(zip((*plain.down, plain.middle), (*soft.down, soft.middle), strict=True))
    assert len(layers) == 13
    for place, (one, two) in enumerate(layers):
        torch.testing.assert_close(one * 0.825 ** (12 - place), two)
    for one, two in zip(soft.down, strict.down, strict=True):
        torch.testing.assert_close(one[0], two[0])  # the prompt's row
        assert not two[1].any()  # the negative prompt's


@torch.no_grad()
def test_own_layer_weights_replace_the_modes(bench: Bench) -> None:
    weights = tuple(float(place) for place in range(13))
    plain = bench.prepare(unit()).residuals(call())
    own = bench.prepare(unit(layer_weights=weights)).residuals(call())
    assert plain is not None and own is not None
    assert not own.down[0].any()
    torch.testing.assert_close(plain.down[3] * 3, own.down[3])
    with pytest.raises(BadRequest, match=r"args\[0\]\.advanced_weighting: has 2 numbers; this model has 13"):
        bench.prepare(unit(layer_weights=(1.0, 1.0))).residuals(call())


@torch.no_grad()
def test_a_region_confines_what_is_added(bench: Bench) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    added = bench.prepare(unit(region=Image.fromarray(mask))).residuals(call())
    assert added is not None
    assert not added.down[0][..., :4].any() and added.down[0][..., 4:].abs().sum() > 0


@torch.no_grad()
def test_a_shuffle_model_acts_everywhere_alike(model: Model, encoder: Tensors, tmp_path: Path) -> None:
    bench = Bench(model, tmp_path, controlnet(encoder, identity), name="control_v11e_sd15_shuffle")
    added = bench.prepare(unit(model="shuffle")).residuals(call())
    assert added is not None and added.down[0].shape == (2, 32, 1, 1)
    assert not added.down[0][1].any()
    denoised(model, bench.prepare(unit(model="shuffle")), call())


@torch.no_grad()
def test_the_hires_pass_has_its_own_map_and_choice(bench: Bench) -> None:
    canvas = Canvas((64, 64), hires_size=(96, 128))
    large = call(latents=torch.randn(2, 4, 16, 12), hires=True)
    control = bench.prepare(unit(), canvas=canvas)
    added = control.residuals(large)
    assert added is not None and added.down[0].shape[-2:] == (16, 12)
    assert [one.image.size for one in control.maps if one.image] == [(96, 128), (64, 64)]
    low = bench.prepare(unit(hires="Low res only"), canvas=canvas)
    assert low.residuals(large) is None and low.residuals(call()) is not None
    edges = bench.prepare(unit(module=MODULES["canny"], threshold_a=1, threshold_b=2), canvas=canvas)
    assert edges.units[0].layer_weights(13, hires=True)[0] == pytest.approx(0.825**12)
    assert edges.units[0].layer_weights(13, hires=False)[0] == 1.0


# --- maps ---------------------------------------------------------------------------------------


def test_maps_come_back_at_the_pictures_size_unless_unwanted(bench: Bench) -> None:
    canny = unit(module=MODULES["canny"], threshold_a=50, threshold_b=100, image=photo(200, 100))
    (made,) = bench.prepare(canny, canvas=Canvas((72, 64))).maps
    assert made.role == "control_map" and made.image is not None and made.image.size == (72, 64)
    assert bench.prepare(replace(canny, save_map=False)).maps == ()
    bench.options["control_net_no_detectmap"] = True
    assert bench.prepare(canny).maps == ()


def test_a_unit_without_an_image_takes_img2imgs_and_else_is_refused(bench: Bench) -> None:
    own = photo(32, 32, seed=4)
    pixels, mode = unit_image(unit(image=None), Canvas((64, 64), init_image=own, init_mode=2))
    assert (pixels == np.asarray(own)).all() and mode == "Resize and Fill"
    with pytest.raises(BadRequest, match=r"^args\[0\]\.image: .*no image"):
        bench.prepare(unit(image=None))


def test_a_mask_painted_on_a_unit_is_a_scribble() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:30] = 255
    pixels, _ = unit_image(unit(mask=Image.fromarray(mask)), Canvas((64, 64)))
    assert (pixels[:, :, 0] == mask).all()
    pixels, _ = unit_image(unit(mask=Image.new("L", (64, 64))), Canvas((64, 64)))
    assert (pixels == np.asarray(photo())).all()


def test_only_masked_inpainting_cuts_the_units_image_too() -> None:
    image = Image.new("RGB", (64, 64))
    image.paste((255, 0, 0), (32, 32, 64, 64))
    canvas = Canvas((64, 64), init_image=image, mask=Image.new("L", (64, 64), 255), crop=(32, 32, 64, 64))
    pixels, _ = unit_image(unit(image=image), canvas)
    assert pixels.shape == (64, 64, 3) and (pixels[:, :, 0] == 255).all()
    pixels, _ = unit_image(unit(image=image, crop_to_mask=False), canvas)
    assert pixels[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("mode", "red_columns"), [("Just Resize", 32), ("Crop and Resize", 64), ("Resize and Fill", 64)]
)
def test_resize_modes_stretch_crop_or_border(mode: Any, red_columns: int) -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 50:150, 0] = 255  # red in the middle half
    image[:, :, 1] = np.arange(200)[None]  # many colours: a photograph
    made = fit(image, mode, (64, 64))
    assert made.shape == (64, 64, 3)
    if mode == "Resize and Fill":
        assert np.ptp(made[:10, :, 1].astype(int)) == 0  # the border has one colour
        assert (made[20:40, 20:40, 0] == 255).all()
    else:
        assert int((made[32, :, 0] > 127).sum()) == red_columns


def test_one_pixel_edges_stay_one_pixel_wide_when_enlarged() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[16] = 255
    made = fit(image, "Just Resize", (96, 96))
    assert set(np.unique(made)) == {0, 255}
    assert (made[:, 20:70, 0] > 0).sum(axis=0).max() == 1


def test_flat_colours_stay_flat() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    for place, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]):
        image[8 * place : 8 * place + 8] = colour
    made = fit(image, "Just Resize", (50, 70))
    assert len(np.unique(made.reshape(-1, 3), axis=0)) == 4


def test_thinning_leaves_a_line_of_a_bar() -> None:
    bar = np.zeros((21, 41), np.uint8)
    bar[8:13, 3:38] = 255
    line = thin(bar, prune=False)
    assert (line[:, 10:30] > 0).sum(axis=0).tolist() == [1] * 20


def test_pixel_perfect_takes_the_resolution_that_needs_no_resizing() -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    assert perfect_resolution(pixels, (512, 512), "Crop and Resize") == 512
    assert perfect_resolution(pixels, (512, 512), "Resize and Fill") == 384


def test_seeds_for_random_maps_come_from_the_request() -> None:
    assert map_seed({"seed": 5, "subseed": 7}, 100) == 12
    assert map_seed({"seed": -1}, 100) == 200
    assert map_seed({"seed": 4294967295, "subseed": 1}, 0) == 0


# --- what units do beside steering --------------------------------------------------------------


def test_inpainting_hints_are_minus_one_where_the_mask_is() -> None:
    hint = torch.full((1, 4, 2, 2), 0.5)
    hint[0, 3] = torch.tensor([[1.0, 0.0], [0.0, 0.2]])
    assert inpaint_hint(hint)[0, 0].tolist() == [[-1.0, 0.5], [0.5, 0.5]]


@torch.no_grad()
def test_inpaint_only_keeps_what_is_outside_its_mask(model: Model, bench: Bench) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 40:] = 255
    control = bench.prepare(unit(module=MODULES["inpaint_only"], mask=Image.fromarray(mask)))
    at = call()
    noise = denoised(model, control, at)
    corrected = control.correct(noise, at, model.alphas_cumprod)
    alpha = model.alphas_cumprod[500]
    pointed_to = (at.latents - (1 - alpha).sqrt() * corrected) / alpha.sqrt()
    own = bench.encode(control.units[0].hint[:, :3] * 2 - 1)
    torch.testing.assert_close(pointed_to[..., :4], own[..., :4].expand(2, -1, -1, -1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(corrected[..., 6:], noise[..., 6:], rtol=1e-3, atol=1e-3)
    made = torch.rand(2, 3, 64, 64)
    finished = control.finish(made)
    torch.testing.assert_close(finished[..., :30], control.units[0].hint[:, :3, :, :30].expand(2, -1, -1, -1))
    torch.testing.assert_close(finished[..., 50:], made[..., 50:])
    (shown,) = control.maps
    assert shown.image is not None and shown.image.mode == "RGBA"


@torch.no_grad()
def test_a_picture_of_several_units_is_encoded_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[torch.Tensor] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(pixels)
        return torch.zeros(1, 4, 8, 8)

    monkeypatch.setattr(bench, "encode", encode)
    fixed = unit(module=MODULES["tile_colorfix"], threshold_a=3.0)
    control = bench.prepare(fixed, replace(fixed, number=1, weight=0.5), replace(fixed, image=photo(seed=1)))
    for one in (control, control.anew()):
        for at_work in one.units:
            at_work.settle(call())
    assert len(encoded) == 2


@torch.no_grad()
def test_tile_colorfix_points_to_the_inputs_low_frequencies(model: Model, bench: Bench) -> None:
    from scipy.ndimage import uniform_filter

    def low(latent: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(uniform_filter(latent.numpy(), size=(0, 0, 7, 7), mode="nearest"))

    control = bench.prepare(unit(module=MODULES["tile_colorfix"], threshold_a=3.0))
    at = call()
    alpha = model.alphas_cumprod[500]

    def pointed_to(noise: torch.Tensor) -> torch.Tensor:
        return (at.latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()

    noise = denoised(model, control, at)
    plain, corrected = pointed_to(noise), pointed_to(control.correct(noise, at, model.alphas_cumprod))
    own = bench.encode(control.units[0].hint * 2 - 1)
    torch.testing.assert_close(corrected, plain - low(plain) + low(own), rtol=1e-3, atol=1e-3)
    unweighted = bench.prepare(unit(module=MODULES["tile_colorfix"], threshold_a=3.0, weight=0.0))
    torch.testing.assert_close(unweighted.correct(noise, at, model.alphas_cumprod), noise)


@torch.no_grad()
@pytest.mark.parametrize("module", ["tile_colorfix+sharp", "inpaint_only"])
def test_corrections_stay_finite_in_half_precision(model: Model, bench: Bench, module: str) -> None:
    """At the first timestep alpha is so close to 1 that bfloat16 makes it 1."""
    one = unit(module=MODULES[module], threshold_a=3.0, threshold_b=1.0, mask=Image.new("L", (64, 64)))
    control = bench.prepare(one)
    at = call(timesteps=torch.zeros(2))
    halved = replace(at, latents=at.latents.bfloat16())
    corrected = control.correct(torch.randn(2, 4, 8, 8).bfloat16(), halved, model.alphas_cumprod)
    assert bool(corrected.isfinite().all())


def test_recoloring_takes_the_lightness_of_the_map(bench: Bench) -> None:
    import cv2

    for name, conversion, channel in (
        ("recolor_luminance", cv2.COLOR_RGB2LAB, 0),
        ("recolor_intensity", cv2.COLOR_RGB2HSV, 2),
    ):
        control = bench.prepare(unit(module=MODULES[name], threshold_a=1.0))
        finished = control.finish(torch.full((1, 3, 64, 64), 0.5))
        pixels = (finished[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        lightness = cv2.cvtColor(pixels, conversion)[:, :, channel].astype(int)
        wanted = (control.units[0].hint[0, 0].numpy() * 255).round().astype(int)
        assert np.abs(lightness - wanted).max() <= 2, name


def test_inpaint_only_on_img2imgs_own_inpainting_becomes_the_global_form(bench: Bench) -> None:
    canvas = Canvas((64, 64), init_image=photo(), mask=Image.new("L", (64, 64), 255))
    control = bench.prepare(unit(module=MODULES["inpaint_only"]), canvas=canvas)
    assert control.units[0].unit.module.name == "inpaint"
    assert control.units[0].correction is None and control.finishes == ()
