"""The shipped demo weights: their size, their layout, and that they draw what is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "demo"
CHECKPOINTS = DEMO / "models" / "Stable-diffusion"
MAIN = CHECKPOINTS / "emoji.safetensors"
MEGABYTE = 1_000_000

pytestmark = pytest.mark.skipif(not MAIN.exists(), reason="the demo weights are not trained yet")


def test_the_weights_stay_small_enough_for_a_clone() -> None:
    weights = list((DEMO / "models").rglob("*.safetensors"))
    assert MAIN.stat().st_size <= 30 * MEGABYTE
    assert sum(file.stat().st_size for file in weights) <= 45 * MEGABYTE


def test_every_checkpoint_is_an_sd1_single_file_with_its_sidecar() -> None:
    from safetensors import safe_open

    for file in CHECKPOINTS.glob("*.safetensors"):
        sizes = yaml.safe_load(file.with_suffix(".yaml").read_text())["model"]["params"]
        assert sizes["scale_factor"] == 0.18215
        assert "parameterization" not in sizes
        with safe_open(file, "pt") as weights:
            names = set(weights.keys())
            words = weights.get_slice(
                "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
            ).get_shape()
            latent = weights.get_slice("first_stage_model.quant_conv.weight").get_shape()
        assert {name.split(".")[0] for name in names} == {"model", "first_stage_model", "cond_stage_model"}
        assert words[0] == 49408
        assert words[1] % 64 == 0
        assert words[1] == sizes["unet_config"]["params"]["context_dim"]
        assert latent[0] == 8


def test_the_lora_names_layers_as_kohya_does() -> None:
    from safetensors import safe_open

    for file in (DEMO / "models" / "Lora").glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
        assert names
        assert all(name.startswith("lora_unet_") for name in names)
        assert {name.split(".", 1)[1] for name in names} == {"alpha", "lora_down.weight", "lora_up.weight"}


@pytest.mark.engine
def test_held_out_wordings_draw_the_concept_they_name() -> None:
    """A smaller draw of the card's figure: 48 of its 200 captions, the same reference pictures."""
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    from train_demo.evaluate import Reference, load_checkpoint, retrieval

    figures = retrieval(load_checkpoint(MAIN), Reference.load(DEMO / "reference.npz"), count=48)
    assert figures["rank 5"] >= 0.6, figures
    assert figures["shuffled, rank 5"] <= 0.15, figures
