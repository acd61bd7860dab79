"""Control models that are not plain ControlNets: what each does to the U-Net, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.call import Call
from sd_cloud.engines.diffusion.controlnet.control import Control
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted
from sd_cloud.engines.diffusion.controlnet.model import load_controlnet
from sd_cloud.engines.diffusion.controlnet.repaint import Repaint
from sd_cloud.engines.diffusion.controlnet.request import control_units
from sd_cloud.engines.diffusion.controlnet.union import UnionNet
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit
from sd_cloud.engines.diffusion.model import Model, Placement, load_model
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.engines.diffusion.weights_file import read_tensors
from sd_cloud.errors import BadRequest, CheckpointBroken
from tests.engines.diffusion.test_controlnet import (
    GOLDEN,
    HINT,
    UNET,
    Bench,
    Tensors,
    call,
    controlnet,
    identity,
    written,
)

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
PARTS = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
XL_WIDTHS = [32, 32, 32, 32, 64, 64, 64, 96, 96]


def encoder_of(name: str) -> Tensors:
    tensors = read_tensors(GOLDEN / f"{name}.safetensors")
    own = {key[len(UNET) :]: value.float() for key, value in tensors.items() if key.startswith(UNET)}
    return {key: value for key, value in own.items() if key.startswith(PARTS)}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(GOLDEN / "tiny-a.safetensors", GOLDEN / "tiny-a.yaml", Placement())


@pytest.fixture(scope="module")
def xl() -> Model:
    return load_model(GOLDEN / "tiny-sdxl.safetensors", GOLDEN / "tiny-sdxl.yaml", Placement())


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(shape, generator=generator) * 0.2


def unit(**changes: Any) -> ControlUnit:
    values = {"number": 0, "field": "args[0]", "module": MODULES["none"], "model": "random"}
    image = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    return ControlUnit(**{**values, "image": image, **changes})


def denoised(model: Model, control: Control | None, **changes: Any) -> Tensor:
    at = call(**changes)

    def forward(at: Call, added: Any) -> Tensor:
        return model.unet(
            at.latents,
            at.timesteps,
            at.context,
            class_labels=at.labels,
            down_block_additional_residuals=added.down if added and added.middle is not None else None,
            mid_block_additional_residual=added.middle if added else None,
            down_intrablock_additional_residuals=list(added.levels) if added and added.levels else None,
            return_dict=False,
        )[0]

    with torch.no_grad():
        return forward(at, None) if control is None else control.run(at, model.unet, forward, at.labels)


# --- Control-LoRA -------------------------------------------------------------------------------------


def control_lora(encoder: Tensors, random: Callable[..., Tensor]) -> tuple[Tensors, Tensors]:
    """A Control-LoRA of rank 2, and the ControlNet it means."""
    whole = controlnet(encoder, identity)
    stored: Tensors = {"lora_controlnet": torch.zeros(())}
    for key, value in whole.items():
        if key not in encoder or not key.endswith(".weight") or value.ndim < 2:
            stored[key] = value
            continue
        up, down = random(value.shape[0], 2), random(2, value[0].numel())
        whole[key] = value + (up @ down).reshape(value.shape)
        ones = (1,) * (value.ndim - 2)
        stored[f"{key.removesuffix('.weight')}.up"] = up.reshape(-1, 2, *ones)
        stored[f"{key.removesuffix('.weight')}.down"] = down.reshape(2, *value.shape[1:])
    return stored, whole


def test_a_control_lora_is_the_controlnet_its_ranks_add_up_to(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    stored, whole = control_lora(encoder_of("tiny-a"), random)
    ranks = load_controlnet(written(tmp_path / "shuffle.pth", stored, prefix=""), model.unet, **CPU)
    plain = load_controlnet(written(tmp_path / "whole.pth", whole), model.unet, **CPU)
    assert ranks.bound and not ranks.averaged
    one, other = ranks.net.state_dict(), plain.net.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)


def test_what_a_control_lora_lacks_is_the_unets_weight_and_no_bias(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    stored, _ = control_lora(encoder_of("tiny-a"), random)
    layer = "input_blocks.1.1.proj_in"
    fewer = {key: value for key, value in stored.items() if not key.startswith(layer)}
    found = load_controlnet(written(tmp_path / "ranks.pth", fewer, prefix=""), model.unet, **CPU)
    projection = found.net.down_blocks[0].attentions[0].proj_in
    assert torch.equal(projection.weight, model.unet.down_blocks[0].attentions[0].proj_in.weight)
    assert not projection.bias.any()


def test_a_control_lora_for_another_family_is_refused(
    xl: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    stored, _ = control_lora(encoder_of("tiny-a"), random)
    with pytest.raises(BadRequest, match=r"ranks\.pth is made for checkpoints of another family"):
        load_controlnet(written(tmp_path / "ranks.pth", stored, prefix=""), xl.unet, **CPU)


# --- ControlNet Union -----------------------------------------------------------------------------------


def union(random: Callable[..., Tensor], types: int = 6) -> Tensors:
    width, embedding = 32, 128
    made = dict(encoder_of("tiny-sdxl"))
    for place, (before, after) in enumerate(HINT):
        made[f"input_hint_block.{2 * place}.weight"] = random(after, before, 3, 3)
        made[f"input_hint_block.{2 * place}.bias"] = random(after)
    outputs = [(f"zero_convs.{place}.0", width) for place, width in enumerate(XL_WIDTHS)]
    for name, channels in [*outputs, ("middle_block_out.0", 96)]:
        made[f"{name}.weight"], made[f"{name}.bias"] = random(channels, channels, 1, 1), random(channels)
    layer = "transformer_layes.0"
    shapes = {
        "task_embedding": (types, width),
        f"{layer}.attn.in_proj_weight": (3 * width, width),
        f"{layer}.attn.in_proj_bias": (3 * width,),
        f"{layer}.attn.out_proj.weight": (width, width),
        f"{layer}.attn.out_proj.bias": (width,),
        f"{layer}.ln_1.weight": (width,),
        f"{layer}.ln_1.bias": (width,),
        f"{layer}.mlp.c_fc.weight": (4 * width, width),
        f"{layer}.mlp.c_fc.bias": (4 * width,),
        f"{layer}.mlp.c_proj.weight": (width, 4 * width),
        f"{layer}.mlp.c_proj.bias": (width,),
        f"{layer}.ln_2.weight": (width,),
        f"{layer}.ln_2.bias": (width,),
        "spatial_ch_projs.weight": (width, width),
        "spatial_ch_projs.bias": (width,),
        "control_add_embedding.linear_1.weight": (embedding, 256 * types),
        "control_add_embedding.linear_1.bias": (embedding,),
        "control_add_embedding.linear_2.weight": (embedding, embedding),
        "control_add_embedding.linear_2.bias": (embedding,),
    }
    return {**made, **{key: random(*shape) for key, shape in shapes.items()}}


def test_a_union_adds_what_it_makes_of_the_kind_of_map(
    xl: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    made = union(random)
    net = load_controlnet(written(tmp_path / "union.safetensors", made, prefix=""), xl.unet, **CPU).net
    assert isinstance(net, UnionNet)
    hint = random(1, 3, 64, 64)
    own, kind = net.hint_embedding(hint), 3
    x = own.mean(dim=(2, 3)) + made["task_embedding"][kind]

    def normed(x: Tensor, name: str) -> Tensor:
        layer = f"transformer_layes.0.{name}"
        return functional.layer_norm(x, (32,), made[f"{layer}.weight"], made[f"{layer}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, made[f"{name}.weight"], made[f"{name}.bias"])

    # With one map the attention has one token to look at: what it gives is that token's value.
    value = functional.linear(
        normed(x, "ln_1"),
        made["transformer_layes.0.attn.in_proj_weight"][64:],
        made["transformer_layes.0.attn.in_proj_bias"][64:],
    )
    x = x + linear(value, "transformer_layes.0.attn.out_proj")
    inner = linear(normed(x, "ln_2"), "transformer_layes.0.mlp.c_fc")
    x = x + linear(inner * torch.sigmoid(1.702 * inner), "transformer_layes.0.mlp.c_proj")
    expected = own + linear(x, "spatial_ch_projs")[:, :, None, None]
    assert torch.allclose(net._hint(hint, [kind]), expected, atol=1e-5)
    assert torch.equal(net._hint(hint, []), own)
    chosen = torch.zeros(6)
    chosen[kind] = 1
    steps = chosen[:, None] * torch.exp(-torch.arange(128) * torch.log(torch.tensor(10000.0)) / 128)
    waves = torch.cat([steps.cos(), steps.sin()], dim=1).reshape(1, -1)
    told = linear(
        functional.silu(linear(waves, "control_add_embedding.linear_1")), "control_add_embedding.linear_2"
    )
    assert torch.allclose(net._type([kind]), told, atol=1e-4)


def test_the_kind_of_map_changes_what_is_added_and_must_be_known(
    xl: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    bench = Bench(xl, tmp_path, union(random))
    at = {"context": random(2, 77, 192), "labels": random(2, 1664)}
    made = [
        denoised(xl, bench.prepare(unit(union_type=kind)), **at)
        for kind in ("Unknown", "Depth", "Segmentation")
    ]
    assert not any(torch.allclose(one, other) for one, other in zip(made, [*made[1:], made[0]], strict=True))
    with pytest.raises(BadRequest, match=r"args\[0\]\.union_control_type: random knows OpenPose, Depth"):
        bench.prepare(unit(union_type="Tile")).residuals(call(**at))


def test_a_kind_of_map_that_is_none_is_refused() -> None:
    sent = {"module": "none", "model": "random", "union_control_type": "Sketch"}
    with pytest.raises(BadRequest, match=r"union_control_type: 'Sketch' is none of 0 or 'OpenPose'"):
        control_units({"alwayson_scripts": {"controlnet": {"args": [sent]}}})


# --- ControlNet-LLLite ----------------------------------------------------------------------------------

LAYERS = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (64, 1),
    "middle_block_1_transformer_blocks_0_attn1_to_v": (128, 2),
    "output_blocks_5_1_transformer_blocks_0_attn2_to_q": (128, 3),
}
"""The width of each projection of tiny-a, and how deep its network reads the map."""


def lllite(random: Callable[..., Tensor]) -> Tensors:
    made: Tensors = {}
    for name, (width, depth) in LAYERS.items():
        reads = {1: ((2, 2),), 2: ((4, 4),), 3: ((4, 4), (2, 2))}[depth]
        shapes: dict[str, tuple[int, ...]] = {"conditioning1.0": (8, 3, 4, 4)}
        for place, (side, _) in enumerate(reads):
            after = 16 if place == len(reads) - 1 else 8
            shapes[f"conditioning1.{2 * place + 2}"] = (after, 8, side, side)
        shapes |= {"down.0": (12, width), "mid.0": (12, 28), "up.0": (width, 12)}
        for part, shape in shapes.items():
            made[f"lllite_unet_{name}.{part}.weight"] = random(*shape)
            made[f"lllite_unet_{name}.{part}.bias"] = random(shape[0])
    return made


def test_an_lllite_adds_to_what_the_attention_projects(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    made = lllite(random)
    bench = Bench(model, tmp_path, made)
    control = bench.prepare(unit(weight=0.5), unit(number=1, weight=0.25))
    projection = model.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    seen: list[Tensor] = []
    handle = projection.register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    with torch.no_grad():
        denoised(model, None)
        denoised(model, control)
    handle.remove()
    plain, _, changed, _ = seen
    name = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    one = {key.split(".", 1)[1]: value for key, value in made.items() if key.startswith(name)}
    hint = control.units[0].hint * 2 - 1
    x = functional.conv2d(hint, one["conditioning1.0.weight"], one["conditioning1.0.bias"], 4).relu()
    x = functional.conv2d(x, one["conditioning1.2.weight"], one["conditioning1.2.bias"], 2)
    x = functional.interpolate(x, (4, 4), mode="nearest-exact").flatten(2).transpose(1, 2).expand(2, -1, -1)
    inner = functional.linear(plain, one["down.0.weight"], one["down.0.bias"]).relu()
    inner = functional.linear(torch.cat([x, inner], 2), one["mid.0.weight"], one["mid.0.bias"]).relu()
    added = functional.linear(inner, one["up.0.weight"], one["up.0.bias"])
    assert torch.allclose(changed, plain + 0.75 * added, atol=1e-5)


def test_an_lllite_works_within_its_window_and_not_in_the_hires_pass(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    bench = Bench(model, tmp_path, lllite(random))
    control = bench.prepare(unit(guidance_end=0.5, hires="High res only"))
    assert not torch.allclose(denoised(model, control, progress=0.5), denoised(model, None))
    assert torch.equal(denoised(model, control, progress=0.6), denoised(model, None))
    assert torch.equal(denoised(model, control, hires=True), denoised(model, None))


def test_an_lllite_for_another_family_or_with_a_region_is_refused(
    model: Model, xl: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    made = lllite(random)
    with pytest.raises(BadRequest, match=r"args\[0\]\.model: random\.safetensors is made for checkpoints"):
        Bench(xl, tmp_path / "xl", made).prepare(unit())
    bench = Bench(model, tmp_path / "sd1", made)
    with pytest.raises(BadRequest, match=r"args\[0\]\.effective_region_mask: is not for LLLite"):
        bench.prepare(unit(region=Image.new("L", (64, 64), 255)))


def test_an_lllite_keeps_the_colours_of_a_tile_colorfix_unit(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    control = Bench(model, tmp_path, lllite(random)).prepare(
        unit(module=MODULES["tile_colorfix"], threshold_a=1.0)
    )
    at, noise = call(), random(2, 4, 8, 8)
    with torch.no_grad():
        corrected = control.correct(noise, at, model.alphas_cumprod)
        correction = control.units[0].correction
        assert correction is not None
        own = correction(noise, at, control.units[0].hint, model.alphas_cumprod)
    assert torch.equal(corrected, own) and not torch.allclose(corrected, noise)


# --- light T2I-Adapters ---------------------------------------------------------------------------------


def light(random: Callable[..., Tensor]) -> Tensors:
    made: Tensors = {}
    widths = (32, 64, 128, 128)
    for level, after in enumerate(widths):
        before, inside = (192, *widths)[level], after // 4
        shapes: dict[str, tuple[int, ...]] = {
            "in_conv": (inside, before, 1, 1),
            "out_conv": (after, inside, 1, 1),
        }
        for place in range(4):
            for part in ("block1", "block2"):
                shapes[f"body.{place}.{part}"] = (inside, inside, 3, 3)
        for part, shape in shapes.items():
            made[f"body.{level}.{part}.weight"] = random(*shape)
            made[f"body.{level}.{part}.bias"] = random(shape[0])
    return made


def test_a_light_adapter_adds_to_each_level_and_comes_in_two_layouts(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    made = light(random)
    diffusers = {f"adapter.{key.replace('.body.', '.resnets.')}": value for key, value in made.items()}
    controls = [
        Bench(model, tmp_path / name, tensors).prepare(unit(weight=0.5))
        for name, tensors in (("plain", made), ("diffusers", diffusers))
    ]
    levels = [control.residuals(call()).levels for control in controls]
    assert [tuple(one.shape[1:]) for one in levels[0]] == [(32, 8, 8), (64, 4, 4), (128, 2, 2), (128, 1, 1)]
    assert all(torch.equal(one, other) for one, other in zip(*levels, strict=True))
    assert not torch.allclose(denoised(model, controls[0]), denoised(model, None))


def test_a_light_adapter_that_lacks_a_tensor_says_which(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    made = light(random)
    del made["body.2.out_conv.weight"]
    with pytest.raises(CheckpointBroken, match=r"random\.safetensors.*body\.2\.out_conv\.weight"):
        Bench(model, tmp_path, made).prepare(unit())


def test_a_unit_with_another_model_pays_no_heed_to_the_kind_of_map(
    model: Model, random: Callable[..., Tensor], tmp_path: Path
) -> None:
    bench = Bench(model, tmp_path, light(random))
    made = [
        bench.prepare(replace(unit(), union_type=kind)).residuals(call()) for kind in ("Unknown", "Depth")
    ]
    assert all(torch.equal(one, other) for one, other in zip(made[0].levels, made[1].levels, strict=True))


# --- inpainting checkpoints -----------------------------------------------------------------------------


def test_an_inpainting_checkpoint_sees_the_units_mask_and_picture(random: Callable[..., Tensor]) -> None:
    hint = torch.rand(1, 4, 16, 24)
    hint[:, 3] = 0
    hint[:, 3, 3, 9] = 1
    given: list[Tensor] = []

    def encode(pixels: Tensor) -> Tensor:
        given.append(pixels)
        return torch.full((1, 4, 2, 3), 0.25)

    repaint = Repaint.of(Hinted(unit(), hint, None), 9, encode)
    assert repaint is not None
    latents = random(2, 9, 2, 3)
    seen = [repaint(call(), latents) for _ in range(2)][-1]
    assert torch.equal(seen[:, :4], latents[:, :4])
    mask = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(seen[:, 4], mask.expand(2, -1, -1))
    assert (seen[:, 5:] == 0.25).all()
    (pixels,) = given
    assert not pixels[:, :, 3, 9].any()
    assert torch.equal(pixels[:, :, 0, 0], hint[:, :3, 0, 0] * 2 - 1)


def test_other_checkpoints_and_units_without_a_mask_are_left_alone() -> None:
    with_mask, without = (Hinted(unit(), torch.zeros(1, channels, 16, 16), None) for channels in (4, 3))
    assert Repaint.of(with_mask, 4, lambda pixels: pixels) is None
    assert Repaint.of(without, 9, lambda pixels: pixels) is None
