"""``--sd-dynamic-cache``: recently used checkpoints stay in RAM, as long as enough of it is free.

The webui's own cache (``sd_checkpoint_cache``) counts checkpoints and forgets in list order; this
one counts bytes and forgets what was used longest ago.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_cloud.engines.webui_forge import is_forge

log = logging.getLogger(__name__)

GIB = 1024**3
StateDict = dict[str, Any]
#: What tells a checkpoint file from another one under its name: (path, size in bytes, mtime in ns).
Identity = tuple[str, int, int]


@dataclass(frozen=True)
class Kept:
    weights: StateDict
    size_bytes: int


class WeightsInRam:
    """State dicts by file, the one used longest ago first; never more than memory allows.

    ``free_bytes`` tells how much RAM is available now; ``reserved_bytes`` of it stay free. Called
    by one thread at a time: whoever loads a checkpoint holds the webui's queue.
    """

    def __init__(self, *, reserved_bytes: int, free_bytes: Callable[[], int]) -> None:
        self._reserved_bytes = reserved_bytes
        self._free_bytes = free_bytes
        self._kept: OrderedDict[Identity, Kept] = OrderedDict()

    def get(self, filename: str) -> StateDict | None:
        """The weights of the file as it is now, as a dict of the caller's own."""
        identity = identity_of(filename)
        kept = self._kept.get(identity)
        if kept is None:
            return None
        self._kept.move_to_end(identity)
        return dict(kept.weights)

    def keep(self, filename: str, weights: Mapping[str, Any]) -> None:
        """Keep a copy in RAM if it fits after others were let go; else keep none of it."""
        identity = identity_of(filename)
        for stale in [one for one in self._kept if one[0] == identity[0]]:
            del self._kept[stale]
        size_bytes = sum(size_of(value) for value in weights.values())
        while self._kept and not self._fits(size_bytes):
            forgotten, _ = self._kept.popitem(last=False)
            log.info("checkpoint %s leaves the RAM", forgotten[0])
        if self._fits(size_bytes):
            self._kept[identity] = Kept({name: copied(value) for name, value in weights.items()}, size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return self._free_bytes() - size_bytes >= self._reserved_bytes


def keep_checkpoints(*, reserved_gib: float) -> None:
    """Have the webui look into RAM before it reads a checkpoint's file. Idempotent."""
    import psutil

    cache = WeightsInRam(
        reserved_bytes=int(reserved_gib * GIB), free_bytes=lambda: int(psutil.virtual_memory().available)
    )
    if is_forge():
        _keep_in_forge(cache)
    else:
        _keep_in_webui(cache)


def _keep_in_webui(cache: WeightsInRam) -> None:
    from modules import sd_models

    read = sd_models.get_checkpoint_state_dict
    if getattr(read, "sd_cloud", False):
        return  # the scripts are loaded again, the webui's modules are not

    def get_checkpoint_state_dict(checkpoint_info: Any, timer: Any) -> Any:
        weights = cache.get(checkpoint_info.filename)
        if weights is not None:
            print(f"Loading weights [{checkpoint_info.calculate_shorthash()}] from RAM")
            timer.record("load weights from RAM")
            return weights
        weights = read(checkpoint_info, timer)
        cache.keep(checkpoint_info.filename, weights)
        timer.record("keep weights in RAM")
        return weights

    get_checkpoint_state_dict.sd_cloud = True  # type: ignore[attr-defined]
    sd_models.get_checkpoint_state_dict = get_checkpoint_state_dict


def _keep_in_forge(cache: WeightsInRam) -> None:
    """Checkpoints and their modules. Forge builds models on the tensors it is given and changes them
    there, so that each time it gets copies; quantized GGUF files are its own to read."""
    from backend import loader

    read = loader.load_torch_file
    if getattr(read, "sd_cloud", False):
        return

    def load_torch_file(file: str, *args: Any, **options: Any) -> Any:
        if file.lower().endswith(".gguf"):
            return read(file, *args, **options)
        weights = cache.get(file)
        if weights is not None:
            print(f"Loading weights of {file} from RAM")
            return {name: copied(value) for name, value in weights.items()}
        weights = read(file, *args, **options)
        cache.keep(file, weights)
        return weights

    load_torch_file.sd_cloud = True  # type: ignore[attr-defined]
    loader.load_torch_file = load_torch_file


def identity_of(filename: str) -> Identity:
    """Raises OSError when the file is gone."""
    found = Path(filename).stat()
    return (filename, found.st_size, found.st_mtime_ns)


def size_of(value: Any) -> int:
    """Bytes of a tensor; 0 for the odd number or text in a checkpoint."""
    return int(value.numel() * value.element_size()) if hasattr(value, "element_size") else 0


def copied(value: Any) -> Any:
    """A tensor in RAM of its own: what safetensors reads is the file, mapped."""
    return value.detach().to("cpu", copy=True) if hasattr(value, "element_size") else value
