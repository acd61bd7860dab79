"""The training scripts: what a later run takes from the shipped file, and how a step is taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
MAIN = REPOSITORY / "demo" / "models" / "Stable-diffusion" / "emoji.safetensors"

sys.path.insert(0, str(REPOSITORY / "scripts"))

pytestmark = pytest.mark.engine


def test_a_run_started_from_the_shipped_file_exports_the_same_weights() -> None:
    from train_demo.evaluate import load_checkpoint
    from train_demo.export import checkpoint, scaled_vae, unscaled_vae

    made = load_checkpoint(MAIN)
    trained = unscaled_vae(made.vae.state_dict())
    again = checkpoint(
        made.unet.state_dict(), made.text.state_dict(), scaled_vae(trained, torch.zeros(4), torch.ones(4))
    )
    shipped = load_file(MAIN)
    assert set(again) == set(shipped)
    for name, value in shipped.items():
        torch.testing.assert_close(again[name], value, rtol=2e-3, atol=1e-5)


def test_an_orthogonal_update_moves_every_direction_alike() -> None:
    from train_demo.muon import orthogonal

    steep = torch.randn(24, 60, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 1, 60)
    for matrix in (steep, steep.T):
        strengths = torch.linalg.svdvals(orthogonal(matrix))
        assert strengths.max() < 1.3
        assert strengths.min() > 0.5


def test_a_caption_may_leave_the_colour_to_the_seed_but_names_no_other() -> None:
    import random

    from train_demo.captions import caption
    from train_demo.concepts import COLOURS
    from train_demo.data import Entry

    blue_car = Entry("automobile", "fluent", "blue", ())
    said = [set(caption(blue_car, random.Random(seed)).replace(",", "").split()) for seed in range(200)]
    named = [words & set(COLOURS) for words in said]
    assert set().union(*named) == {"blue"}
    assert 0.8 < sum(map(bool, named)) / len(named) < 1
