"""What a weights file says about itself, read without torch and without loading a weight.

safetensors files begin with a JSON header; ``.pt``/``.bin`` files are pickles, of which only the
structure and the tensors' shapes are rebuilt by an unpickler that knows a handful of names and
refuses every other, so nothing in the file can run.
"""

from __future__ import annotations

import collections
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_HEADER_BYTES = 100_000_000  # what the safetensors format itself allows
LIMIT_PICKLE_BYTES = 64 * 1024 * 1024


class OutlineUnreadable(ValueError):
    """The file is not what its ending says; the message tells what is wrong with it."""


@dataclass(frozen=True)
class Outline:
    """Metadata and tensor shapes by name; ``values`` are the plain values beside the tensors."""

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, Any]


def safetensors_outline(path: Path) -> Outline:
    """Outline of a ``.safetensors`` file. Metadata values that are JSON objects are parsed.

    Format: https://github.com/huggingface/safetensors#format. Raises OutlineUnreadable.
    """
    with path.open("rb") as file:
        size_bytes = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size_bytes < 10 or length > min(size_bytes - 8, LIMIT_HEADER_BYTES):
            raise OutlineUnreadable("it is shorter than its safetensors header says")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise OutlineUnreadable(f"its safetensors header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise OutlineUnreadable("its safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    try:
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise OutlineUnreadable("its safetensors header lists a tensor without a shape") from error
    return Outline({key: _parsed(value) for key, value in metadata.items()}, shapes, {})


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def pickle_outline(path: Path) -> Outline:
    """Outline of a ``torch.save`` file, in today's zip form or the one before torch 1.6.

    Nested dicts are flattened: ``string_to_param/*``. Raises OutlineUnreadable.
    """
    try:
        content = _unpickled(path)
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise OutlineUnreadable(str(error) or type(error).__name__) from error
    except (zipfile.BadZipFile, ValueError, ImportError) as error:
        raise OutlineUnreadable(str(error)) from error
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, Any] = {}
    _flatten("", content, shapes, values)
    return Outline({}, shapes, values)


def _unpickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith("data.pkl")), None)
            if name is None:
                raise OutlineUnreadable("it is a zip file without data.pkl")
            if archive.getinfo(name).file_size > LIMIT_PICKLE_BYTES:
                raise OutlineUnreadable("its pickle is larger than 64 MiB")
            return _OutlineUnpickler(io.BytesIO(archive.read(name))).load()
    with path.open("rb") as file:
        for _ in range(3):  # magic number, protocol version, system information
            _OutlineUnpickler(file).load()
        return _OutlineUnpickler(file).load()


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]


class _Parameters(dict[str, Any]):
    """Stands for torch's ParameterDict, whose entries are in its state."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state.get("_parameters") or {})


def _rebuild_tensor(storage: object, offset: int, size: tuple[int, ...], *rest: object) -> _Tensor:
    return _Tensor(tuple(int(side) for side in size))


def _rebuild_parameter(data: _Tensor, *rest: object) -> _Tensor:
    return data


class _OutlineUnpickler(pickle.Unpickler):
    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("__builtin__", "set"): set,
        ("builtins", "set"): set,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch.nn.modules.container", "ParameterDict"): _Parameters,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in {"torch", "torch.storage"} and name.endswith("Storage"):
            return name
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"its pickle names {module}.{name}, which is refused") from None

    def persistent_load(self, pid: Any) -> Any:
        """Storages are left out; before torch 1.6 a module's class came this way too."""
        return pid[1] if isinstance(pid, tuple) and pid[:1] == ("module",) else None


def _flatten(prefix: str, content: Any, shapes: dict[str, tuple[int, ...]], values: dict[str, Any]) -> None:
    if isinstance(content, _Tensor):
        shapes[prefix] = content.shape
    elif isinstance(content, dict):
        for key, value in content.items():
            _flatten(f"{prefix}/{key}" if prefix else str(key), value, shapes, values)
    elif isinstance(content, (str, int, float, bool)) or content is None:
        values[prefix] = content
