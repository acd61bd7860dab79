"""LoRA files: the names their layers go under, and the changes they make."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from sd_cloud.engines.base import Control  # noqa: E402
from sd_cloud.engines.diffusion.lora import _together  # noqa: E402
from sd_cloud.engines.diffusion.lora_deltas import UnknownForm, delta  # noqa: E402
from sd_cloud.engines.diffusion.lora_keys import ldm_name, split_key  # noqa: E402
from sd_cloud.errors import CheckpointBroken  # noqa: E402
from sd_cloud.job import Job  # noqa: E402
from tests.golden.golden import GOLDEN, decibels, install_models  # noqa: E402

WEIGHT = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
CONV = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2))


def some(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def change(
    parts: dict[str, Any], weight: Any = WEIGHT, multiplier: float = 1.0, rank: int | None = None
) -> Any:
    return delta(parts, weight, multiplier, rank).weight


def test_a_lora_is_up_times_down_times_alpha_over_rank() -> None:
    up, down = some(6, 2), some(2, 4)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    torch.testing.assert_close(change(parts, multiplier=0.5), up @ down * 0.25)
    torch.testing.assert_close(change(parts, rank=1), up[:, :1] @ down[:1] * 0.5)


def test_without_alpha_the_scale_is_one() -> None:
    up, down = some(6, 2), some(2, 4)
    torch.testing.assert_close(change({"lora_up.weight": up, "lora_down.weight": down}), up @ down)


def test_a_convolution_is_changed_over_its_whole_kernel() -> None:
    up, down = some(6, 2, 1, 1), some(2, 4, 3, 3)
    made = change({"lora_up.weight": up, "lora_down.weight": down}, CONV)
    torch.testing.assert_close(made, torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down))


def test_a_middle_tensor_carries_the_kernel() -> None:
    up, middle, down = some(6, 2, 1, 1), some(2, 3, 3, 3), some(3, 4, 1, 1)
    parts = {"lora_up.weight": up, "lora_mid.weight": middle, "lora_down.weight": down}
    wanted = torch.einsum("on,nmkl,mi->oikl", up[:, :, 0, 0], middle, down[:, :, 0, 0])
    torch.testing.assert_close(change(parts, CONV), wanted)


def test_loha_multiplies_two_products() -> None:
    a, b, c, d = some(6, 2), some(2, 4), some(6, 3), some(3, 4)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    torch.testing.assert_close(change(parts), (a @ b) * (c @ d))


def test_lokr_is_a_kronecker_product() -> None:
    first, second = some(2, 2), some(3, 2)
    made = change({"lokr_w1": first, "lokr_w2": second})
    torch.testing.assert_close(made, torch.kron(first, second))
    a, b = some(3, 1), some(1, 2)
    made = change({"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(2.0)})
    torch.testing.assert_close(made, torch.kron(first, a @ b) * 2)


def test_a_full_difference_and_its_bias_are_taken_as_they_are() -> None:
    found = delta({"diff": WEIGHT * 2, "diff_b": some(6)}, WEIGHT, 0.5, None)
    torch.testing.assert_close(found.weight, WEIGHT)
    torch.testing.assert_close(found.bias, some(6) * 0.5)


def test_ia3_scales_inputs_or_outputs() -> None:
    made = change({"weight": torch.full((4,), 0.5), "on_input": torch.tensor(True)})
    torch.testing.assert_close(made, WEIGHT * 0.5)
    made = change({"weight": torch.full((6,), 0.5), "on_input": torch.tensor(False)})
    torch.testing.assert_close(made, WEIGHT * 0.5)


def test_dora_keeps_the_trained_magnitude_of_each_column() -> None:
    up, down, magnitude = some(6, 2), some(2, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    parts = {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": magnitude}
    merged = WEIGHT + change(parts)
    torch.testing.assert_close(merged.norm(dim=0), magnitude[0])


def test_the_alpha_of_glora_scales_nothing_as_in_the_webui() -> None:
    a1, a2, b1, b2 = some(2, 4), some(4, 2), some(2, 4), some(6, 2)
    parts = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
    made = change({**parts, "alpha": torch.tensor(9.0)})
    torch.testing.assert_close(made, b2 @ b1 + WEIGHT @ a2 @ a1)


def test_oft_turns_each_block_of_rows_and_keeps_its_length() -> None:
    turned = WEIGHT + change({"oft_blocks": some(2, 3, 3)})
    for rows in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(turned[rows].norm(dim=0), WEIGHT[rows].norm(dim=0))
    assert not torch.allclose(turned, WEIGHT, atol=0.1)


def test_the_alpha_of_oft_limits_how_far_it_turns() -> None:
    free, limited = (
        change({"oft_blocks": some(2, 3, 3), "alpha": torch.tensor(alpha)}) for alpha in (0.0, 0.001)
    )
    assert limited.norm() < 0.1 * free.norm()


def test_old_oft_files_hold_the_turns_themselves() -> None:
    turns = torch.linalg.qr(some(2, 3, 3))[0]
    made = WEIGHT + change({"oft_diag": turns})
    torch.testing.assert_close(made[:3], turns[0].T @ WEIGHT[:3])


def test_boft_turns_the_rows_as_a_whole() -> None:
    weight = some(8, 4)
    turned = weight + change({"oft_blocks": some(2, 2, 4, 4)}, weight)
    torch.testing.assert_close(turned.norm(dim=0), weight.norm(dim=0))
    rescaled = weight + change({"oft_blocks": some(2, 2, 4, 4), "rescale": torch.full((8, 1), 2.0)}, weight)
    torch.testing.assert_close(rescaled, turned * 2)


def test_what_is_of_no_known_form_is_told_with_its_names() -> None:
    with pytest.raises(UnknownForm, match=r"strange\.weight"):
        change({"strange.weight": some(2)})


@pytest.mark.parametrize(
    ("key", "name", "part"),
    [
        ("lora_unet_mid_block_a_proj_in.lora_up.weight", "unet_mid_block_a_proj_in", "lora_up.weight"),
        ("lora_te1_text_model_x.alpha", "te1_text_model_x", "alpha"),
        ("unet.conv_in.lora_A.weight", "unet_conv_in", "lora_down.weight"),
        ("unet.down.to_q.lora.up.weight", "unet_down_to_q", "lora_up.weight"),
        ("unet.a.attn1.processor.to_out_lora.down.weight", "unet_a_attn1_to_out_0", "lora_down.weight"),
        ("text_encoder.a.q_proj.lora_linear_layer.up.weight", "text_encoder_a_q_proj", "lora_up.weight"),
        ("base_model.model.unet.a.lora_B.default.weight", "unet_a", "lora_up.weight"),
    ],
)  # fmt: skip
def test_a_key_says_its_layer_and_its_part(key: str, name: str, part: str) -> None:
    assert split_key(key) == (name, part)


@pytest.mark.parametrize(
    ("flat", "ldm"),
    [
        ("down_blocks_1_attentions_0_proj_in", "input_blocks_4_1_proj_in"),
        ("down_blocks_0_resnets_1_conv1", "input_blocks_2_0_in_layers_2"),
        ("down_blocks_2_downsamplers_0_conv", "input_blocks_9_0_op"),
        ("mid_block_resnets_1_conv2", "middle_block_2_out_layers_3"),
        ("mid_block_attentions_0_proj_out", "middle_block_1_proj_out"),
        ("up_blocks_1_attentions_2_proj_in", "output_blocks_5_1_proj_in"),
        ("up_blocks_0_upsamplers_0_conv", "output_blocks_2_1_conv"),
        ("time_embedding_linear_2", "time_embed_2"),
        ("conv_out", "out_2"),
    ],
)
def test_a_layer_has_a_name_of_the_original_code(flat: str, ldm: str) -> None:
    assert ldm_name(flat, 2, {}) == ldm


# --- whole files ----------------------------------------------------------------------------------

needs_models = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout"
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def worker(data_dir: Path) -> Any:
    from sd_cloud.engines.diffusion.engine import create

    return create(install_models(data_dir))


SMALL = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 7, "sampler_name": "Euler"}
JOB = Job(kind="txt2img", payload=SMALL, options={"sd_model_checkpoint": "tiny-a"})


def made(worker: Any, prompt: str, **options: Any) -> Any:
    payload = {**SMALL, "prompt": prompt, "override_settings": options}
    return worker.run(replace(JOB, payload=payload), lambda progress: None, Control())


def in_diffusers_names(model: Any, kohya: dict[str, Any]) -> dict[str, Any]:
    """The same file as diffusers writes it: dots, A and B, the scale multiplied in."""
    dotted = {f"unet_{name.replace('.', '_')}": f"unet.{name}" for name, _ in model.unet.named_modules()}
    for name, _ in model.text[0].model.named_modules():
        dotted[f"te_text_model_{name.replace('.', '_')}"] = f"text_encoder.text_model.{name}"
    found = {}
    for key, tensor in kohya.items():
        flat, part = split_key(key)
        if part == "lora_up.weight":
            rank = tensor.shape[1]
            alpha = float(kohya[f"lora_{flat}.alpha"])
            found[f"{dotted[flat]}.lora_B.weight"] = tensor * (alpha / rank)
        elif part == "lora_down.weight":
            found[f"{dotted[flat]}.lora_A.weight"] = tensor
    return found


@pytest.mark.engine
@needs_models
def test_the_same_lora_under_any_names_makes_the_same_picture(worker: Any, data_dir: Path) -> None:
    wanted = made(worker, "a cat <lora:tiny-style:0.8>")
    model = next(iter(worker.workshop.residents._models.values()))
    kohya = load_file(GOLDEN / "checkpoints" / "tiny-style.safetensors")
    save_file(in_diffusers_names(model, kohya), data_dir / "models" / "Lora" / "dotted.safetensors")
    renamed = {}
    for key, tensor in kohya.items():
        flat, dot, part = key.partition(".")
        unet = re.fullmatch(r"lora_unet_(.+)", flat)
        renamed[(f"lora_unet_{ldm_name(unet[1], 2, {})}" if unet else flat) + dot + part] = tensor
    save_file(renamed, data_dir / "models" / "Lora" / "original.safetensors")

    for name in ("dotted", "original"):
        outcome = made(worker, f"a cat <lora:{name}:0.8>")
        assert "comments" not in outcome.info
        assert decibels(outcome.pictures[0].image, wanted.pictures[0].image) > 60


@pytest.mark.engine
@needs_models
def test_two_loras_add_up(worker: Any) -> None:
    twice = made(worker, "a cat <lora:tiny-style:0.5><lora:dotted:0.5>")
    once = made(worker, "a cat <lora:tiny-style:1>")
    assert decibels(twice.pictures[0].image, once.pictures[0].image) > 60


@pytest.mark.engine
@needs_models
def test_text_and_picture_have_their_own_multipliers(worker: Any) -> None:
    parts = [
        made(worker, f"a cat <lora:tiny-style:{weights}>").pictures[0].image
        for weights in ("1:0", "0:1", "1")
    ]
    assert decibels(parts[0], parts[2]) < 50
    assert decibels(parts[1], parts[2]) < 50
    named = made(worker, "a cat <lora:tiny-style:te=0:unet=1>").pictures[0].image
    assert decibels(named, parts[1]) > 60


@pytest.mark.engine
@needs_models
def test_a_file_for_another_family_is_told(worker: Any, data_dir: Path) -> None:
    save_file(
        {"lora_unet_nowhere.diff": torch.zeros(2)}, data_dir / "models" / "Lora" / "foreign.safetensors"
    )
    assert "no layer of this checkpoint" in made(worker, "a cat <lora:foreign:1>").info["comments"]


@pytest.mark.engine
@needs_models
def test_of_a_file_with_tensors_of_no_known_form_nothing_is_taken(worker: Any, data_dir: Path) -> None:
    before = made(worker, "a cat")
    content = {"lora_unet_conv_in.diff": torch.ones(32, 4, 3, 3), "lora_unet_conv_out.strange": some(2)}
    save_file(content, data_dir / "models" / "Lora" / "strange.safetensors")
    after = made(worker, "a cat <lora:strange:1>")
    assert "not applied: unet_conv_out has strange" in after.info["comments"]
    assert decibels(after.pictures[0].image, before.pictures[0].image) > 60


@pytest.mark.engine
@needs_models
def test_openclips_attention_changes_as_a_whole_or_not_at_all(worker: Any) -> None:
    sd2 = replace(JOB, options={"sd_model_checkpoint": "tiny-sd2v"})
    worker.run(sd2, lambda progress: None, Control())
    model = next(m for m in worker.workshop.residents._models.values() if m.layout.family == "sd2")
    parts = [f"te_text_model_encoder_layers_0_self_attn_{part}_proj" for part in ("q", "k", "v", "out")]
    other = "te_text_model_encoder_layers_1_mlp_fc1"
    assert _together(model, [*parts, other]) == [[other], parts]
    assert _together(model, [*parts[:3], other]) == [[other]]


@pytest.mark.engine
@needs_models
def test_a_broken_file_after_a_good_one_leaves_nothing_merged(worker: Any, data_dir: Path) -> None:
    before = made(worker, "a cat")
    (data_dir / "models" / "Lora" / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointBroken, match="broken"):
        made(worker, "a cat <lora:tiny-style:1><lora:broken:1>")
    assert decibels(made(worker, "a cat").pictures[0].image, before.pictures[0].image) > 60


@pytest.mark.engine
@needs_models
def test_what_could_not_be_used_is_told_each_time(worker: Any, data_dir: Path) -> None:
    save_file(
        {"lora_unet_elsewhere.diff": torch.zeros(2)}, data_dir / "models" / "Lora" / "other.safetensors"
    )
    first, second = (made(worker, "a cat <lora:other:1>").info["comments"] for _ in range(2))
    assert first == second


@pytest.mark.engine
@needs_models
def test_an_embedding_inside_a_lora_is_there_while_the_lora_is(worker: Any, data_dir: Path) -> None:
    vectors = next(iter(load_file(GOLDEN / "checkpoints" / "tiny-word.safetensors").values()))
    content = {
        "bundle_emb.insideword.string_to_param.*": vectors,
        "lora_unet_conv_out.diff": torch.zeros(4, 32, 3, 3),
    }
    save_file(content, data_dir / "models" / "Lora" / "carrier.safetensors")
    wanted = made(worker, "a tiny-word cat")
    carried = made(worker, "a insideword cat<lora:carrier:1>")
    assert decibels(carried.pictures[0].image, wanted.pictures[0].image) > 60
    assert 'TI hashes: "insideword: carrier"' in carried.pictures[0].infotext
    unnamed = made(worker, "a insideword cat<lora:carrier:1>", lora_bundled_ti_to_infotext=False)
    assert 'TI hashes: "insideword: "' in unnamed.pictures[0].infotext
    alone = made(worker, "a insideword cat")
    assert decibels(alone.pictures[0].image, wanted.pictures[0].image) < 50
