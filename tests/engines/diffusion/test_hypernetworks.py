"""Hypernetwork files as the webui's training writes them, and what they do to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sd_cloud.engines.base import Control
from sd_cloud.errors import BadRequest, CheckpointBroken
from sd_cloud.job import Job
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")

from sd_cloud.engines.diffusion.hypernetworks import read_hypernetwork  # noqa: E402

CONTEXT_WIDTH = 64  # of the tiny checkpoint's prompts


def network(width: int, layers: list[tuple[str, int, int]], scale: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, out, into in layers:
        state[f"{name}.weight"] = torch.randn(out * width, into * width, generator=generator) * scale
        state[f"{name}.bias"] = torch.randn(out * width, generator=generator) * scale
    return state


def write(path: Path, scale: float = 0.2, **facts: Any) -> Path:
    state = network(CONTEXT_WIDTH, [("linear.0", 2, 1), ("linear.2", 1, 2)], scale)
    content = {
        CONTEXT_WIDTH: (state, state),
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
        "activate_output": False,
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_a_network_is_layers_with_an_activation_between(tmp_path: Path) -> None:
    networks = read_hypernetwork(write(tmp_path / "one.pt"))
    keys, _ = networks[CONTEXT_WIDTH]
    assert [type(layer).__name__ for layer in keys] == ["Linear", "ReLU", "Linear"]


def test_the_oldest_files_have_two_layers_and_no_structure(tmp_path: Path) -> None:
    state = network(CONTEXT_WIDTH, [("linear1", 2, 1), ("linear2", 1, 2)], 0.1)
    torch.save({CONTEXT_WIDTH: (state, state)}, tmp_path / "old.pt")
    keys, values = read_hypernetwork(tmp_path / "old.pt")[CONTEXT_WIDTH]
    assert [type(layer).__name__ for layer in keys] == ["Linear", "Linear"]
    torch.testing.assert_close(keys[0].weight, values[0].weight)


def test_dropout_keeps_its_place_in_the_names(tmp_path: Path) -> None:
    state = network(CONTEXT_WIDTH, [("linear.0", 2, 1), ("linear.3", 1, 2)], 0.1)
    facts = {"layer_structure": [1, 2, 1], "activation_func": "relu", "activate_output": False}
    content = {CONTEXT_WIDTH: (state, state), "dropout_structure": [0, 0.3, 0], **facts}
    torch.save(content, tmp_path / "dropped.pt")
    assert len(read_hypernetwork(tmp_path / "dropped.pt")[CONTEXT_WIDTH][0]) == 4


@pytest.mark.parametrize("content", [{"name": "x"}, {CONTEXT_WIDTH: ({}, {})}, [1, 2]])
def test_another_kind_of_file_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointBroken, match=r"other\.pt"):
        read_hypernetwork(tmp_path / "other.pt")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not GOLDEN.is_dir():
        pytest.skip("the tiny checkpoints are not beside this checkout")
    from sd_cloud.engines.diffusion.engine import create

    data_dir = tmp_path_factory.mktemp("data")
    write(data_dir / "models" / "hypernetworks" / "bent.pt")
    write(data_dir / "models" / "hypernetworks" / "still.pt", scale=0.0)
    return create(install_models(data_dir))


def made(worker: Any, prompt: str, **settings: Any) -> Any:
    payload = {
        "prompt": prompt,
        "steps": 2,
        "width": 64,
        "height": 64,
        "seed": 7,
        "override_settings": settings,
    }
    job = Job(kind="txt2img", payload=payload, options={"sd_model_checkpoint": "tiny-a"})
    return worker.run(job, lambda progress: None, Control())


@pytest.mark.engine
def test_a_hypernetwork_changes_the_picture_and_leaves_no_trace(worker: Any) -> None:
    plain, bent = (made(worker, prompt).pictures[0].image for prompt in ("a cat", "a cat<hypernet:bent:1>"))
    assert decibels(plain, bent) < 50
    assert decibels(plain, made(worker, "a cat").pictures[0].image) > 60


@pytest.mark.engine
@pytest.mark.parametrize("call", ["<hypernet:bent:0>", "<hypernet:still:1>"])
def test_one_that_adds_nothing_changes_nothing(worker: Any, call: str) -> None:
    plain, other = (made(worker, f"a cat{end}").pictures[0].image for end in ("", call))
    assert decibels(plain, other) > 60


@pytest.mark.engine
def test_the_options_can_add_one_to_every_prompt(worker: Any) -> None:
    outcome = made(worker, "a cat", sd_hypernetwork="bent")
    assert outcome.pictures[0].infotext.startswith("a cat<hypernet:bent:1.0>\n")
    wanted = made(worker, "a cat<hypernet:bent:1>")
    assert decibels(outcome.pictures[0].image, wanted.pictures[0].image) > 60


@pytest.mark.engine
def test_an_unknown_one_is_told_and_a_wrong_number_refused(worker: Any) -> None:
    assert made(worker, "a cat<hypernet:nobody>").info["comments"] == "Hypernetwork not found: nobody\n"
    with pytest.raises(BadRequest, match="prompt"):
        made(worker, "a cat<hypernet:bent:much>")
