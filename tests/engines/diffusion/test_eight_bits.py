"""Weights held in 8 bits: ``fp8_storage`` and ``cache_fp16_weight``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sd_cloud.errors import BadRequest
from tests.engines.diffusion.test_engine import job, made, picture
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout"),
]
ENABLED = {"fp8_storage": "Enable"}
LORA = "a cat <lora:tiny-style:1>"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from sd_cloud.engines.diffusion.engine import create

    yield create(install_models(tmp_path_factory.mktemp("data")))


def loaded(worker: Any) -> Any:
    return next(reversed(worker.workshop.residents._models.values()))


def in_8_bits(part: Any) -> list[str]:
    return [name for name, one in part.named_parameters() if one.dtype == torch.float8_e4m3fn]


def test_all_but_the_vae_is_held_in_8_bits_and_the_infotext_says_so(worker: Any) -> None:
    outcome = made(worker, job(override_settings=ENABLED))
    text = outcome.pictures[0].infotext
    assert "FP8 weight: Enable, Cache FP16 weight for LoRA: False" in text
    model = loaded(worker)
    names = in_8_bits(model.unet)
    assert "conv_in.weight" in names
    assert "conv_in.bias" in names
    assert not [name for name in names if "norm" in name and "linear" not in name]
    assert in_8_bits(model.text[0].model)
    assert not in_8_bits(model.vae)
    assert 15 < decibels(picture(outcome), picture(made(worker, job()))) < 60
    assert loaded(worker) is not model


def test_for_sdxl_leaves_others_as_they_are(worker: Any) -> None:
    plain = made(worker, job())
    model = loaded(worker)
    outcome = made(worker, job(override_settings={"fp8_storage": "Enable for SDXL"}))
    assert loaded(worker) is model
    assert outcome.pictures[0].infotext == plain.pictures[0].infotext
    made(worker, replace(job(override_settings={"fp8_storage": "Enable for SDXL"}), checkpoint="tiny-sdxl"))
    assert in_8_bits(loaded(worker).unet)


def test_openclips_attention_stays_as_the_webui_leaves_it(worker: Any) -> None:
    made(worker, replace(job(override_settings=ENABLED), checkpoint="tiny-sd2v"))
    names = in_8_bits(loaded(worker).text[0].model)
    assert any("out_proj" in name for name in names)
    assert not any("q_proj" in name for name in names)


def test_a_lora_is_added_to_what_was_before_where_that_is_kept(worker: Any) -> None:
    rough = picture(made(worker, job(prompt=LORA, override_settings=ENABLED)))
    kept = {**ENABLED, "cache_fp16_weight": True}
    outcome = made(worker, job(prompt=LORA, override_settings=kept))
    assert "Cache FP16 weight for LoRA: True" in outcome.pictures[0].infotext
    model = loaded(worker)
    layer, (half, _) = next(iter(model.halves.items()))
    assert half.dtype == torch.float16
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert decibels(picture(outcome), rough) < 60


def test_a_lora_leaves_the_weights_as_they_were(worker: Any) -> None:
    before = picture(made(worker, job(override_settings=ENABLED)))
    made(worker, job(prompt=LORA, override_settings=ENABLED))
    assert decibels(picture(made(worker, job(override_settings=ENABLED))), before) == float("inf")


def test_another_value_is_refused_with_those_there_are(worker: Any) -> None:
    with pytest.raises(BadRequest, match=r"fp8_storage.*Disable, Enable for SDXL, Enable"):
        made(worker, job(override_settings={"fp8_storage": "maybe"}))


def test_layers_in_8_bits_answer_in_the_type_of_what_they_are_given() -> None:
    from sd_cloud.engines.diffusion.eight_bits import convertible, hold_in_8_bits

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    x = torch.randn(1, 3, 4, 4)
    wanted = net(x)
    halves = hold_in_8_bits(convertible(net), keep_half=True)
    assert len(halves) == 2
    for dtype in (torch.float32, torch.bfloat16):
        out = net(x.to(dtype))
        assert out.dtype == dtype
        assert torch.allclose(out.float(), wanted, atol=0.2)
