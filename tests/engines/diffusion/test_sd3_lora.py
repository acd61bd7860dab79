"""LoRAs on Stable Diffusion 3: files by kohya's scripts and by diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.embeddings import EmbeddingShelf
from sd_cloud.engines.diffusion.hashes import HashBook
from sd_cloud.engines.diffusion.lora import LoraShelf, Wanted
from sd_cloud.engines.diffusion.model import Model, Placement, load_model
from tests.engines.diffusion.sd3_files import LAYOUTS, Tensors, tiny_sd3, written

pytestmark = pytest.mark.skipif(not LAYOUTS.is_dir(), reason="needs shared/reference beside the repository")

UNET = "model.diffusion_model."
RANK = 2


@pytest.fixture(scope="module")
def plain() -> Tensors:
    return tiny_sd3(version="3.5-medium")


def merged(
    folder: Path, checkpoint: Tensors, lora: Tensors, multiplier: float = 1.0
) -> tuple[Model, list[str]]:
    """A model of the checkpoint with a LoRA file merged into it, and what was said about it."""
    model = load_model(written(folder / "model.safetensors", checkpoint), None, Placement())
    save_file(lora, folder / "lora.safetensors")
    shelf = LoraShelf(EmbeddingShelf(HashBook(folder / "hashes.json")))
    file = ModelFile("lora", str(folder / "lora.safetensors"))
    return model, shelf.apply(model, [Wanted("lora", file, multiplier, multiplier, None)])


def pair(out: int, into: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(out, RANK) * 0.1, torch.randn(RANK, into) * 0.1


def weights(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.unet.state_dict())


def test_every_linear_layer_of_the_reference_code_can_be_changed(tmp_path: Path, plain: Tensors) -> None:
    """As if the file's differences had been added to the checkpoint."""
    torch.manual_seed(0)
    names = [
        key for key, one in plain.items() if key.startswith(UNET) and key.endswith("weight") and one.ndim == 2
    ]
    lora: Tensors = {}
    changed = {key: one.float() for key, one in plain.items()}
    for key in names:
        up, down = pair(*plain[key].shape)
        flat = "lora_unet_" + key[len(UNET) :].removesuffix(".weight").replace(".", "_")
        lora |= {
            f"{flat}.lora_up.weight": up,
            f"{flat}.lora_down.weight": down,
            f"{flat}.alpha": torch.tensor(1.0),
        }
        changed[key] = changed[key] + up @ down / RANK
    assert len(names) > 20
    model, said = merged(tmp_path, plain, lora)
    other = load_model(written(tmp_path / "changed.safetensors", changed), None, Placement())
    assert said == []
    for name, one in weights(other).items():
        torch.testing.assert_close(weights(model)[name], one, rtol=1e-4, atol=1e-5, msg=name)


def diffusers_file(parts: tuple[str, ...]) -> Tensors:
    torch.manual_seed(1)
    found: Tensors = {}
    for part in parts:
        up, down = pair(128, 128)
        base = f"transformer.transformer_blocks.0.attn.{part}"
        found |= {f"{base}.lora_B.weight": up, f"{base}.lora_A.weight": down}
    return found


def changed_layers(tmp_path: Path, plain: Tensors, lora: Tensors) -> set[str]:
    model, _ = merged(tmp_path, plain, lora)
    before = weights(load_model(tmp_path / "model.safetensors", None, Placement()))
    return {name for name, one in weights(model).items() if not torch.equal(one, before[name])}


def test_of_a_diffusers_file_the_pictures_attention_counts_as_in_the_webui(
    tmp_path: Path, plain: Tensors
) -> None:
    lora = diffusers_file(("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out"))
    base = "transformer.transformer_blocks.0.attn."
    assert changed_layers(tmp_path, plain, lora) == {
        f"{base}{part}.weight" for part in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_query_and_key_without_the_value_change_nothing(tmp_path: Path, plain: Tensors) -> None:
    assert changed_layers(tmp_path, plain, diffusers_file(("to_q", "to_k"))) == set()
