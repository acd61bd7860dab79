"""Tensors out of a model file, and nothing else: what a file could run is never run."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sd_cloud.errors import CheckpointBroken

Tensors = dict[str, torch.Tensor]


def read_tensors(path: Path) -> Tensors:
    """All tensors of a ``.safetensors``, ``.ckpt``, ``.pt`` or ``.bin`` file, on the CPU as stored.

    A dict within a pickle's dict (IP-Adapters) puts its key and a dot before its tensors' names.
    Pickles go through ``torch.load(weights_only=True)`` alone. Raises CheckpointBroken with the
    file and the fact: truncated, not of its format, or a pickle that holds more than tensors.
    """
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    loaded = read_pickle(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise CheckpointBroken(f"{path.name} holds no state dict")
    tensors = dict(_flat(state))
    if not tensors:
        raise CheckpointBroken(f"{path.name} holds no tensors")
    return tensors


def _flat(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and not prefix:
            yield from _flat(value, f"{key}.")


def read_pickle(path: Path) -> Any:
    """What a torch pickle holds, read with ``weights_only``. Raises CheckpointBroken."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointBroken(
            _mistaken_for_a_model(path)
            or f"{path.name} is refused: it is not a pickle of tensors only ({_unpickling_fact(error)}). "
            "Convert it to .safetensors where you trust it"
        ) from error
    except Exception as error:  # garbage trips the unpickler in a dozen ways
        fact = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise CheckpointBroken(
            _mistaken_for_a_model(path)
            or f"{path.name} is no torch file, or a damaged one: it cannot be read ({fact})"
        ) from error


def _unpickling_fact(error: pickle.UnpicklingError) -> str:
    """What torch met, without its advice to switch the check off."""
    text = str(error).partition("Check the documentation")[0].strip()
    code = re.search(r"GLOBAL ([\w.]+)", text)
    return f"it calls for {code[1]}" if code else text.splitlines()[-1][:300]


def _mistaken_for_a_model(path: Path) -> str | None:
    """What lies under a model file's name where the real one should: by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return None
    if not head:
        return f"{path.name} is empty: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return f"{path.name} is a pointer of Git LFS, not the file itself: `git lfs pull` fetches it"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return f"{path.name} is a web page, not a model: download the file itself"
    safetensors = path.suffix.lower() == ".safetensors"
    if not safetensors and head[8:9] == b"{":
        return f"{path.name} holds safetensors: give it the ending .safetensors"
    if safetensors and head.startswith(b"PK"):
        return f"{path.name} holds a torch pickle: give it the ending .ckpt"
    return None


def _read_safetensors(path: Path) -> Tensors:
    try:
        return dict(load_file(os.fspath(path), device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        if not path.exists():
            raise CheckpointBroken(f"{path.name} is gone: {error}") from error
        raise CheckpointBroken(
            _mistaken_for_a_model(path)
            or f"{path.name} is not a complete safetensors file: {error} ({path.stat().st_size} bytes)"
        ) from error
