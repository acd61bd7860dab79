"""IP-Adapters (Ye et al., arXiv 2308.06721) from one file: a picture becomes tokens, and the U-Net
attends to them beside the prompt's.

The kinds tell themselves apart by their tensors: plain and light, plus, full face, FaceID, FaceID plus
(v2 by its name), PuLID, and InstantID's half of them. Two layouts: two dicts in a pickle, or their keys in
one file after ``image_proj.`` and ``ip_adapter.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from sd_cloud.engines.diffusion.controlnet.pulid import Projection
from sd_cloud.engines.diffusion.preprocess.embedding import Embedding, extensions_numbers, hidden_of_nothing
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.errors import BadRequest, CheckpointBroken
from sd_cloud.settings import Settings

Kind = Literal["plain", "plus", "full", "face", "face_plus", "instant_id", "pulid"]

PROJECTION, LAYERS = "image_proj.", "ip_adapter."
FACE = 512
TAKES = {
    "face": "who is in it (module ip-adapter_face_id)",
    "face_plus": "who is in it and how it looks (module ip-adapter_face_id_plus)",
    "instant_id": "who is in it (module instant_id_face_embedding)",
    "pulid": "who is in it and how the face looks (module ip-adapter_pulid)",
}


@dataclass(frozen=True)
class Tokens:
    """[1, tokens, width] for rows of the prompt, and for those of the negative prompt."""

    positive: Tensor
    negative: Tensor

    def rows(self, marks: Tensor) -> Tensor:
        """[N, tokens, width] for a call's rows; ``marks`` [N, 1, 1, 1] is 1 for the prompt's."""
        share = marks[:, :, :, 0]
        return self.positive.to(share) * share + self.negative.to(share) * (1 - share)


def mean_tokens(several: list[Tokens]) -> Tokens:
    """Several pictures as one."""

    def mean(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).sum(dim=0) / len(parts)

    return Tokens(mean([one.positive for one in several]), mean([one.negative for one in several]))


@dataclass(eq=False)
class IPAdapter:
    """A loaded IP-Adapter. ``layers``: to keys and values, for each cross attention of the U-Net:
    encoder, decoder, middle."""

    name: str
    kind: Kind
    projection: nn.Module
    layers: tuple[tuple[Tensor, Tensor], ...]
    takes: int
    for_sdxl: bool
    bound: bool = False

    def fits(self, unet: UNet2DConditionModel) -> bool:
        return _shapes(unet) == [tuple(keys.shape) for keys, _ in self.layers]

    def tokens(self, of: Embedding, settings: Settings, field: str) -> Tokens:
        """Raises BadRequest when the unit's preprocessor does not tell what this kind takes."""
        try:
            positive, negative = self._tokens(of, settings, field)
        except _Lacks as error:
            what = TAKES.get(self.kind, f"{self.takes} numbers of how it looks")
            raise BadRequest(
                f"{self.name} takes of a picture {what}; {error}. 'ip-adapter-auto' chooses by the "
                "published names of models",
                field=f"{field}.module",
            ) from None
        return Tokens(positive.cpu(), negative.cpu())

    @torch.inference_mode()
    def _tokens(self, of: Embedding, settings: Settings, field: str) -> tuple[Tensor, Tensor]:
        if self.kind in ("face", "instant_id"):
            face = self._on_device(_there(of.face, FACE, "a face"))
            face = face.reshape(1, 1, -1) if self.kind == "instant_id" else face
            return self.projection(face), self.projection(torch.zeros_like(face))
        if self.kind == "pulid":
            return self._of_person(of)
        seen = None if of.seen is None else (of.seen.projected if self.kind == "plain" else of.seen.hidden)
        look = self._on_device(_there(seen, self.takes, "a look"))
        if self.kind == "plain":
            return self.projection(look), self.projection(torch.zeros_like(look))
        if self.kind == "face_plus":
            face = self._on_device(_there(of.face, FACE, "a face"))
            nothing = self._nothing(settings, field)
            return self._with_face(face, look), self._with_face(torch.zeros_like(face), nothing)
        constant = extensions_numbers("clip_vision_vith_uc", settings) if self.for_sdxl else None
        if constant is not None and self.kind == "plus":
            return self.projection(look), constant
        return self.projection(look), self.projection(self._nothing(settings, field))

    def _of_person(self, of: Embedding) -> tuple[Tensor, Tensor]:
        if of.person is None:
            raise _Lacks("this preprocessor does not")
        face, looks = of.person.face, of.person.looks
        who = self._on_device(_there(torch.cat([face, looks.projected], dim=1), self.takes, "a person"))
        hidden = [self._on_device(one) for one in looks.hidden]
        nothing = [torch.zeros_like(one) for one in hidden]
        return self.projection(who, hidden), self.projection(torch.zeros_like(who), nothing)

    def _nothing(self, settings: Settings, field: str) -> Tensor:
        hidden = hidden_of_nothing(settings, field=f"{field}.module")
        return self._on_device(_there(hidden, self.takes, "a look at nothing"))

    def _with_face(self, face: Tensor, look: Tensor) -> Tensor:
        projection: Any = self.projection
        projection.clip_embeds = look[:, None]  # diffusers' module takes several pictures here
        return torch.as_tensor(projection(face))

    def _on_device(self, numbers: Tensor) -> Tensor:
        parameter = next(self.projection.parameters())
        return numbers.to(parameter.device, parameter.dtype)


class _Lacks(Exception):
    pass


def _there(numbers: Tensor | None, width: int, what: str) -> Tensor:
    if numbers is None:
        raise _Lacks(f"this preprocessor gives none of {what}")
    if numbers.shape[-1] != width:
        raise _Lacks(f"this preprocessor gives {numbers.shape[-1]}")
    return numbers


def is_ip_adapter(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith((PROJECTION, LAYERS)) for key in state)


def load_ip_adapter(
    state: Mapping[str, Tensor], path: Path, unet: UNet2DConditionModel, *, device: torch.device, field: str
) -> IPAdapter:
    """The IP-Adapter of a file's tensors, in float32.

    Raises CheckpointBroken and BadRequest (another family's).
    """
    mine = {key: one.float() for key, one in state.items() if key.startswith(PROJECTION)}
    own = {key.removeprefix(PROJECTION): one for key, one in mine.items()}
    kind = _kind(own)
    layers = _layers(state, path.name)
    if not own or not layers:
        raise CheckpointBroken(f"{path.name}: its IP-Adapter is incomplete, it has no {_missing(own)}")
    _check_fit(layers, unet, path.name, field)
    projection = _projection(own, kind, unet, path.name)
    if kind == "face_plus":
        projection.shortcut = "v2" in path.name
    return IPAdapter(
        path.stem,
        kind,
        projection.eval().requires_grad_(False).to(device),
        tuple((keys.to(device), values.to(device)) for keys, values in layers),
        takes=_width_taken(kind, own),
        for_sdxl=unet.config["projection_class_embeddings_input_dim"] is not None,
    )


def _projection(own: Mapping[str, Tensor], kind: Kind, unet: UNet2DConditionModel, name: str) -> Any:
    try:
        if kind == "pulid":
            with torch.device("meta"):
                made = Projection(own)
            assign(made, own, name, "projection", torch.float32)
            return made
        # Knows the published keys of all other kinds; private, but it is what load_ip_adapter() calls.
        return unet._convert_ip_adapter_image_proj_to_diffusers(own, low_cpu_mem_usage=False)
    except (KeyError, RuntimeError, IndexError) as error:
        fact = " ".join(str(error).split())[:300]
        raise CheckpointBroken(f"{name}: its IP-Adapter is incomplete or damaged: {fact}") from error


def _missing(projection: Mapping[str, Tensor]) -> str:
    return "ip_adapter.1.to_k_ip.weight" if projection else "image_proj"


def _kind(projection: Mapping[str, Tensor]) -> Kind:
    if "body.0.weight" in projection:
        return "pulid"
    if "perceiver_resampler.proj_in.weight" in projection:
        return "face_plus"
    if "proj.3.weight" in projection:
        return "full"
    if "latents" in projection:
        seen = projection.get("proj_in.weight")
        return "instant_id" if seen is not None and seen.shape[1] == FACE else "plus"
    return "face" if "proj.0.weight" in projection else "plain"


def _width_taken(kind: Kind, projection: Mapping[str, Tensor]) -> int:
    key = {
        "plain": "proj.weight",
        "plus": "proj_in.weight",
        "full": "proj.0.weight",
        "face_plus": "perceiver_resampler.proj_in.weight",
        "pulid": "body.0.weight",
    }
    return int(projection[key[kind]].shape[1]) if kind in key else FACE


def _layers(state: Mapping[str, Tensor], name: str) -> tuple[tuple[Tensor, Tensor], ...]:
    """In the order of their odd numbers. FaceID files also hold a LoRA, which the extension leaves to a
    LoRA file of its own."""
    numbers = sorted(
        int(found[1]) for key in state if (found := re.fullmatch(r"ip_adapter\.(\d+)\.to_k_ip\.weight", key))
    )
    try:
        return tuple(
            (state[f"{LAYERS}{one}.to_k_ip.weight"].float(), state[f"{LAYERS}{one}.to_v_ip.weight"].float())
            for one in numbers
        )
    except KeyError as error:
        raise CheckpointBroken(f"{name}: its IP-Adapter lacks the tensor {error}") from error


def _check_fit(
    layers: tuple[tuple[Tensor, Tensor], ...], unet: UNet2DConditionModel, name: str, field: str
) -> None:
    wanted = _shapes(unet)
    has = [tuple(keys.shape) for keys, _ in layers]
    if wanted != has:
        raise BadRequest(
            f"{name} is made for checkpoints of another family: it has {len(has)} layers for a context of "
            f"{has[0][1] if has else 0}, the checkpoint {len(wanted)} for one of {wanted[0][1]}",
            field=field,
        )


def _shapes(unet: UNet2DConditionModel) -> list[tuple[int, ...]]:
    return [tuple(one.to_k.weight.shape) for one in cross_attentions(unet)]


def cross_attentions(unet: UNet2DConditionModel) -> list[Any]:
    """As IP-Adapter's files number them: encoder, decoder, middle."""
    return [one for part in (unet.down_blocks, unet.up_blocks, [unet.mid_block]) for one in _of(part)]


def _of(blocks: Any) -> list[Any]:
    return [layer.attn2 for group in _transformers(blocks) for layer in group.transformer_blocks]


def _transformers(blocks: Any) -> list[Any]:
    return [one for block in blocks for one in getattr(block, "attentions", None) or ()]


def transformer_places(unet: UNet2DConditionModel) -> list[int]:
    """For each of :func:`cross_attentions`, which transformer it is in, counted as the U-Net runs."""
    down, middle, up = (
        [len(one.transformer_blocks) for one in _transformers(part)]
        for part in (unet.down_blocks, [unet.mid_block], unet.up_blocks)
    )
    starts = (0, len(down) + len(middle), len(down))
    sizes = (down, up, middle)
    return [
        start + place
        for start, part in zip(starts, sizes, strict=True)
        for place, size in enumerate(part)
        for _ in range(size)
    ]
