"""What lies under a model file's name is told when it is no model."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sd_cloud.engines.diffusion.weights_file import read_tensors
from sd_cloud.errors import CheckpointBroken

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "is empty"),
        (POINTER, "pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
    ],
)
def test_a_file_that_stands_in_for_a_model_is_told_apart(
    tmp_path: Path, name: str, content: bytes, fact: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointBroken, match=f"a[.](ckpt|safetensors) .*{fact}"):
        read_tensors(tmp_path / name)


def test_a_model_with_the_ending_of_the_other_format_says_which_it_should_have(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "a.ckpt")
    torch.save({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointBroken, match=r"a\.ckpt holds safetensors.*ending \.safetensors"):
        read_tensors(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointBroken, match=r"b\.safetensors holds a torch pickle.*ending \.ckpt"):
        read_tensors(tmp_path / "b.safetensors")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("harm",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_with_the_code_it_calls_for_and_no_advice_to_run_it(
    tmp_path: Path, zipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.ckpt"
    if zipped:
        torch.save({"w": Harmful()}, file)
    else:
        file.write_bytes(pickle.dumps({"w": Harmful()}, protocol=2))
    with pytest.raises(CheckpointBroken, match=r"it calls for print\)") as refused:
        read_tensors(file)
    assert "weights_only" not in str(refused.value)
    assert capsys.readouterr().out == ""
