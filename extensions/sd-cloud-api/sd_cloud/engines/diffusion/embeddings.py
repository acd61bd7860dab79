"""Textual inversions: words of a prompt that stand for trained vectors (Gal et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.hashes import HashBook
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.prompt_chunks import Found, Lookup
from sd_cloud.engines.diffusion.text_encoders import TextEncoder
from sd_cloud.engines.diffusion.weights_file import read_pickle, read_tensors
from sd_cloud.errors import CheckpointBroken

BUNDLED = "bundle_emb."


@dataclass(frozen=True, eq=False)
class Embedding:
    """One textual inversion. ``tensors``: [vectors, width] for each encoder it was trained for.

    ``bundled``: it came in a LoRA's file, whose name stands for its hash.
    """

    name: str
    tensors: Mapping[str, Tensor]
    short_hash: str
    changed_ns: int
    bundled: bool = False

    @property
    def vectors(self) -> int:
        return int(next(iter(self.tensors.values())).shape[0])

    @property
    def width(self) -> int:
        return sum(int(tensor.shape[-1]) for tensor in self.tensors.values())

    def vectors_for(self, kind: Literal["clip_l", "open_clip"]) -> Tensor:
        own = self.tensors.get("clip_l" if kind == "clip_l" else "clip_g")
        return own if own is not None else self.tensors["any"]


@dataclass
class EmbeddingShelf:
    """The embeddings on disk, loaded when a model of their width first meets them."""

    hashes: HashBook
    files: tuple[ModelFile, ...] = ()
    _carried: dict[Model, tuple[Embedding, ...]] = field(default_factory=dict)
    _loaded: dict[str, Embedding | None] = field(default_factory=dict)
    _by_first_token: dict[int, dict[int, list[tuple[list[int], Embedding]]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def list_files(self, files: tuple[ModelFile, ...]) -> None:
        """The files that are installed now. Those that have changed are read again."""
        self.files = files
        marks = {one.name: _changed_ns(one) for one in files}
        for name, embedding in list(self._loaded.items()):
            if name not in marks or (embedding is not None and marks[name] != embedding.changed_ns):
                del self._loaded[name]
        self._by_first_token.clear()

    def carry(self, model: Model, embeddings: Sequence[Embedding]) -> None:
        """Embeddings that come with the LoRAs merged into a model; a file of the same name wins."""
        installed = {one.name for one in self.files}
        self._carried[model] = tuple(one for one in embeddings if one.name not in installed)
        if not self._carried[model]:
            del self._carried[model]

    def lookup(self, model: Model) -> Lookup:
        """A function that finds embeddings of this model's width by their name's tokens."""
        width = sum(encoder.width for encoder in model.text)
        if width not in self._by_first_token:
            self._by_first_token[width] = self._index(width, model.text[0])
        table = self._by_first_token[width]
        carried = self._carried.get(model, ())
        along = [(model.text[0].tokenize(one.name), one) for one in carried if one.width == width]

        def find(tokens: Sequence[int], position: int) -> tuple[Found, int] | None:
            for ids, embedding in (*table.get(tokens[position], ()), *along):
                if list(tokens[position : position + len(ids)]) == ids:
                    return embedding, len(ids)
            return None

        return find

    def _index(self, width: int, encoder: TextEncoder) -> dict[int, list[tuple[list[int], Embedding]]]:
        table: dict[int, list[tuple[list[int], Embedding]]] = {}
        for one in self.files:
            listed = one.extra.get("shape")
            if listed is not None and listed != width:
                continue
            embedding = self._load(one)
            ids = encoder.tokenize(one.name)
            if embedding is None or embedding.width != width or not ids:
                continue
            table.setdefault(ids[0], []).append((ids, embedding))
        for entries in table.values():
            entries.sort(key=lambda entry: len(entry[0]), reverse=True)
        return table

    def _load(self, one: ModelFile) -> Embedding | None:
        if one.name not in self._loaded:
            try:
                self._loaded[one.name] = read_embedding(one.name, Path(one.filename), self.hashes)
            except CheckpointBroken as error:
                self._loaded[one.name] = None
                self.skipped[one.name] = str(error)
        return self._loaded[one.name]


def bundled_embeddings(tensors: Mapping[str, Tensor], lora: str) -> list[Embedding]:
    """Embeddings inside a LoRA file (``bundle_emb.NAME.…``); infotexts name the LoRA for a hash."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(BUNDLED):
            name, _, part = key[len(BUNDLED) :].partition(".")
            parts.setdefault(name, {})[part.removeprefix("string_to_param.")] = tensor
    found = []
    for name, data in parts.items():
        vectors = _vectors(data)
        if vectors is not None:
            found.append(Embedding(name, vectors, lora, 0, bundled=True))
    return found


def _changed_ns(one: ModelFile) -> int:
    try:
        return Path(one.filename).stat().st_mtime_ns
    except OSError:
        return 0


def read_embedding(name: str, path: Path, hashes: HashBook) -> Embedding:
    """Read a textual inversion: the webui's own form, SDXL's pair, or diffusers' single tensor.

    Raises CheckpointBroken when the file is none of these.
    """
    data: Any = read_tensors(path) if path.suffix.lower() == ".safetensors" else read_pickle(path)
    if not isinstance(data, Mapping):
        raise CheckpointBroken(f"{path.name} is not a textual inversion")
    tensors = _vectors(data)
    if tensors is None:
        raise CheckpointBroken(
            f"{path.name} is not a textual inversion: it has {', '.join(map(str, data))}"[:300]
        )
    sha256 = hashes.sha256(path) or ""
    return Embedding(name, tensors, sha256[:12], path.stat().st_mtime_ns)


def _vectors(data: Mapping[Any, Any]) -> dict[str, Tensor] | None:
    trained = data.get("string_to_param")
    if trained is not None:
        trained = getattr(trained, "_parameters", trained)
        found = [value for value in trained.values() if isinstance(value, torch.Tensor)]
        return {"any": _rows(found[0])} if len(found) == 1 else None
    if isinstance(data.get("clip_g"), torch.Tensor) and isinstance(data.get("clip_l"), torch.Tensor):
        return {key: _rows(data[key]) for key in ("clip_l", "clip_g")}
    tensors = [value for value in data.values() if isinstance(value, torch.Tensor)]
    return {"any": _rows(tensors[0])} if len(tensors) == len(data) == 1 else None


def _rows(tensor: Tensor) -> Tensor:
    rows = tensor.detach().float()
    return rows[None] if rows.ndim == 1 else rows
