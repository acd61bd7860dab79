"""Tensors out of a TorchScript archive, and nothing else: none of the code in it is ever run.

The archive is a zip: ``data.pkl`` pickles the module as objects of classes that the archive's own code
would define, and ``data/N`` are the tensors' bytes (torch, ``torch/csrc/jit/serialization``). Here such an
object is a plain holder of its attributes, and the unpickler knows only what builds tensors and lists.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_cloud.engines.diffusion.weights_file import Tensors
from sd_cloud.errors import CheckpointBroken

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_scripted(path: Path) -> bool:
    """Whether a file is such an archive: only those have constants beside the data."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def read_scripted_tensors(path: Path) -> Tensors:
    """All tensors by the names that the module's ``state_dict`` would give them. Raises CheckpointBroken."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = pickled.removesuffix("data.pkl")
            found = _Reader(io.BytesIO(archive.read(pickled)), archive, root).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile, StopIteration) as error:
        raise CheckpointBroken(f"{path.name} is no TorchScript archive of tensors: {error}") from error
    except Exception as error:  # garbage trips the unpickler in a dozen ways
        fact = f"{type(error).__name__}: {error}"
        raise CheckpointBroken(f"{path.name} is damaged: it cannot be read ({fact:.300})") from error
    tensors = dict(_flat(found, ""))
    if not tensors:
        raise CheckpointBroken(f"{path.name} holds no tensors")
    return tensors


class _Held:
    """An object of a class that is defined in the archive."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._root = root
        self._read: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Held
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return _first
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self._read:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._read[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._read[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


def _flat(held: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in held.attributes.items() if isinstance(held, _Held) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _flat(value, f"{prefix}{name}.")
