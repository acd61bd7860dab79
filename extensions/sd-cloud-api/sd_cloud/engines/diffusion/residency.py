"""Checkpoints and VAEs that stay in memory, the least recently used going first."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import psutil
import torch
from diffusers import AutoencoderKL

from sd_cloud.engines.base import Checkpoint
from sd_cloud.engines.diffusion.eight_bits import PLAIN, Storage
from sd_cloud.engines.diffusion.model import Model, Placement, load_model, load_vae
from sd_cloud.engines.diffusion.placement import fast_attention
from sd_cloud.errors import CheckpointNotFound

GIB = 1024**3
VAES_KEPT = 4
log = logging.getLogger(__name__)


class Residents:
    """Loaded models by file. ``on_leave`` hears of each that goes.

    ``reserved_gib``: how much memory of the machine stays free; a model that would take from it
    makes others leave, the one asked for is loaded in any case.
    """

    def __init__(self, placement: Placement, reserved_gib: float, on_leave: Callable[[Model], None]) -> None:
        self.placement = placement
        self._reserved_bytes = int(reserved_gib * GIB)
        self._on_leave = on_leave
        self._models: OrderedDict[Hashable, Model] = OrderedDict()
        self._vaes: OrderedDict[Hashable, AutoencoderKL] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def model(self, checkpoint: Checkpoint, storage: Storage = PLAIN) -> Model:
        """The checkpoint, loaded and held as asked. Raises CheckpointNotFound and CheckpointBroken."""
        path = Path(checkpoint.filename)
        sidecar = path.with_suffix(".yaml")
        key = (_mark(path), _mark(sidecar) if sidecar.is_file() else None)
        found = self._models.get(key)
        if found is None or found.storage != storage.for_family(sdxl=found.is_sdxl):
            self._drop([old for old, model in self._models.items() if model.file == path])
            self._make_room(self._size_in_memory(path))
            found = load_model(path, sidecar, self.placement, storage)
            fast_attention(found.unet, self.placement)
            self._models[key] = found
        self._models.move_to_end(key)
        return found

    def vae(self, path: Path) -> AutoencoderKL:
        key = _mark(path)
        found = self._vaes.get(key)
        if found is None:
            found = self._vaes[key] = load_vae(path, self.placement)
            while len(self._vaes) > VAES_KEPT:
                self._vaes.popitem(last=False)
        self._vaes.move_to_end(key)
        return found

    def clear(self) -> None:
        """Let everything go."""
        self._drop(list(self._models))
        self._vaes.clear()
        release_memory()

    def _size_in_memory(self, path: Path) -> int:
        """About what loading takes: the weights widened from half precision, and the file beside them."""
        widened = 2 if self.placement.dtype == torch.float32 else 1
        return path.stat().st_size * (widened + 1)

    def _make_room(self, wanted_bytes: int) -> None:
        while self._models and self._free_bytes() - wanted_bytes < self._reserved_bytes:
            oldest = next(iter(self._models))
            log.info("%s leaves memory to make room", self._models[oldest].file.name)
            self._drop([oldest])
            release_memory()

    def _free_bytes(self) -> int:
        if self.placement.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.placement.device)
            return min(int(free) + self._reserved_bytes, psutil.virtual_memory().available)
        return int(psutil.virtual_memory().available)

    def _drop(self, keys: list[Hashable]) -> None:
        for key in keys:
            self._on_leave(self._models.pop(key))
        if keys:
            release_memory()


def _mark(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointNotFound(f"{path.name} is gone: {error.strerror}") from error
    return path, found.st_mtime_ns, found.st_size


def release_memory() -> None:
    """Give back what is free: Python's cycles, CUDA's cache, and glibc's heap."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another libc keeps its own counsel
        ctypes.CDLL("libc.so.6").malloc_trim(0)
