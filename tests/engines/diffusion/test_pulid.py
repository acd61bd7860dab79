"""PuLID: what its networks make of a face, and what an attention makes of that.

``pulid_values.json`` holds what the classes of sd-webui-controlnet (API version 3) and of its extension
evaclip gave for the same random weights and inputs, in float32; ``pulid_outlines.txt`` the names and shapes
that those classes have at their published sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.pulid import Projection, beside_only, with_empty
from sd_cloud.engines.diffusion.controlnet.request import control_units
from sd_cloud.engines.diffusion.controlnet.units import PULID_MODES, PulidMode
from sd_cloud.engines.diffusion.preprocess import eva_clip
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.table import CLIP_EVA
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.errors import BadRequest, CheckpointBroken
from tests.engines.diffusion import image_prompt_files as files
from tests.engines.diffusion.test_preprocess_networks import outlines

VALUES = json.loads(Path(__file__).with_name("pulid_values.json").read_text())
OUTLINES = outlines(Path(__file__).with_name("pulid_outlines.txt"))
FEW = 37


def few(tensor: Tensor) -> list[float]:
    """Every 37th number and, for what they leave out, the mean square."""
    flat = tensor.double().flatten()
    return [*flat[::FEW].tolist(), float((flat**2).mean())]


def close(tensor: Tensor, name: str) -> bool:
    return bool(np.allclose(few(tensor), VALUES[name], rtol=1e-4, atol=1e-5))


def draws(*shapes: tuple[int, ...]) -> list[Tensor]:
    random = files.Random(61)
    return [random.values(*shape) for shape in shapes]


def face() -> np.ndarray[Any, Any]:
    """Grey in 0..1, 96 x 96 px."""
    down, across = np.mgrid[:96, :96]
    grey = (np.sin(down / 7) * np.cos(across / 5) + 1) / 2
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.float32)


def projection() -> Projection:
    own = files.MODELS["ip-adapter_pulid_sdxl_fp16"][1](files.Random(71))
    with torch.device("meta"):
        made = Projection(own)
    assign(made, own, "file", "projection", torch.float32)
    return made.requires_grad_(False)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    torch.save(files.eva_clip(), tmp_path / "eva.pt")
    return Bench({CLIP_EVA: tmp_path / "eva.pt"})


def test_the_look_of_a_face_is_the_extensions(bench: Bench) -> None:
    seen = eva_clip.look(bench, face(), CLIP_EVA)
    assert [one.shape for one in seen.hidden] == [(1, 1 + files.EVA_PLACES, files.HIDDEN)] * 5
    assert close(seen.projected, "look")
    assert close(torch.cat(seen.hidden), "hidden")


def test_the_tokens_are_the_extensions() -> None:
    who, *hidden = draws((1, files.FACE + files.EVA_PROJECTED), *[(1, 17, files.HIDDEN)] * 5)
    made = projection()(who, hidden)
    assert made.shape == (1, 10, files.SDXL) and close(made, "tokens")


@pytest.mark.parametrize("mode", PULID_MODES)
def test_what_is_added_beside_a_prompt_is_the_extensions(mode: PulidMode) -> None:
    there, query, tokens = draws((2, 30, 32), (2, 4, 30, 8), (2, 10, files.SDXL))
    keys, values = (one / 14 for one in draws((32, files.SDXL), (32, files.SDXL)))
    padded = with_empty(tokens, mode)
    k, v = (functional.linear(padded, one).reshape(2, -1, 4, 8).transpose(1, 2) for one in (keys, values))
    made = functional.scaled_dot_product_attention(query, k, v).transpose(1, 2).reshape(there.shape)
    found = beside_only(made, there, query, k, mode)
    assert close(found, mode)
    along = (found * there).sum(dim=1).abs().max()
    assert (along < 1e-4) == (mode == "Extremely style")  # fidelity keeps a share of it


@pytest.mark.parametrize("file", sorted(OUTLINES))
def test_the_published_layout_is_taken_whole(file: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in OUTLINES[file].shapes.items()}
    with torch.device("meta"):
        if file == CLIP_EVA:
            own = dict(eva_clip._image_part(state))
            net: torch.nn.Module = eva_clip.EvaVision(own)
            assert net.side == 336 and len(list(net.blocks)) == 24  # type: ignore[arg-type]
        else:
            own, net = state, Projection(state)
    assert {key: one.shape for key, one in net.state_dict().items()} == {
        key: one.shape for key, one in own.items()
    }


def test_a_network_that_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    state = files.eva_clip()
    del state["visual.rope.freqs_sin"]
    torch.save(state, tmp_path / "eva.pt")
    with pytest.raises(CheckpointBroken, match=r"eva\.pt.*rope\.freqs_sin"):
        eva_clip.look(Bench({CLIP_EVA: tmp_path / "eva.pt"}), face(), CLIP_EVA)


def test_a_unit_says_which_mode() -> None:
    def mode(**unit: object) -> PulidMode:
        (made,) = control_units({"alwayson_scripts": {"controlnet": {"args": [unit]}}})
        return made.pulid_mode

    assert mode(pulid_mode="Extremely style") == "Extremely style"
    assert mode() == mode(pulid_mode="Fidelity") == "Fidelity"
    with pytest.raises(BadRequest, match=r"pulid_mode.*Extremely style"):
        mode(pulid_mode="Fast")
