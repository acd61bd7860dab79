"""How a LoRA file's tensors for one layer become a change of its weight.

The forms and their names are those of LoRA (Hu et al. 2021) and LyCORIS (Yeh et al. 2023,
KohakuBlueleaf/LyCORIS): LoRA and LoCon with or without a middle tensor, LoHa, LoKr, full
differences, norms, (IA)^3, GLoRA, OFT and BOFT; DoRA (Liu et al. 2024) on top of any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
LOKR_FIRST = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
LOKR_SECOND = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))


class UnknownForm(ValueError):
    """The file has tensors for this layer that are of no known form."""


@dataclass(frozen=True)
class Delta:
    weight: Tensor
    bias: Tensor | None = None


def delta(parts: Parts, weight: Tensor, multiplier: float, dynamic_rank: int | None) -> Delta:
    """The change of a layer's ``weight`` (float32), scaled. Raises UnknownForm."""
    parts = {key: value.to(weight.device, torch.float32) for key, value in parts.items()}
    form = _form(parts)
    if form is None:
        raise UnknownForm(", ".join(sorted(parts)))
    change, rank = form(parts, weight, dynamic_rank)
    if "bias" in parts:
        change = change.reshape(parts["bias"].shape) + parts["bias"]
    change = change.reshape(weight.shape)
    change = change * _scale(parts, rank)
    if "dora_scale" in parts:
        change = _decomposed(change, weight, parts["dora_scale"])
    bias = parts.get("b_norm")
    if bias is None:
        bias = parts.get("diff_b")
    return Delta(change * multiplier, None if bias is None else bias * multiplier)


def is_known(parts: Parts) -> bool:
    """Whether a layer's tensors are of a form that can be applied."""
    return _form(parts) is not None


def _scale(parts: Parts, rank: int | None) -> float:
    if "scale" in parts:
        return float(parts["scale"])
    if rank is not None and "alpha" in parts:
        return float(parts["alpha"]) / rank
    return 1.0


Change = tuple[Tensor, int | None]
"""The unscaled change, and the rank that ``alpha`` is divided by (None: there is no scale)."""
Form = Callable[[Parts, Tensor, int | None], Change]


def _form(parts: Parts) -> Form | None:
    for needed, form in FORMS:
        if needed <= set(parts):
            return form
    return None


def _low_rank(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    up, down = parts["lora_up.weight"], parts["lora_down.weight"]
    if "lora_mid.weight" in parts:
        middle = parts["lora_mid.weight"]
        return torch.einsum("nmkl,in,mj->ijkl", middle, up.flatten(1), down.flatten(1)), down.shape[0]
    return up.flatten(1)[:, :dynamic_rank] @ down.flatten(1)[:dynamic_rank], down.shape[0]


def _generalised(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    """GLoRA. Its ``alpha`` scales nothing in the webui."""
    return (
        parts["b2.weight"] @ parts["b1.weight"]
        + weight.float().flatten(1) @ parts["a2.weight"] @ parts["a1.weight"]
    ), None


def _full(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    return parts["diff"], None


def _norm(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    return parts["w_norm"], None


def _gains(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    """(IA)^3."""
    gain = parts["weight"] if bool(parts["on_input"]) else parts["weight"].reshape(-1, 1)
    return weight.float() * gain, None


def _hadamard(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    """LoHa."""
    sides = []
    for side in ("1", "2"):
        a, b = parts[f"hada_w{side}_a"], parts[f"hada_w{side}_b"]
        core = parts.get(f"hada_t{side}")
        sides.append(a.flatten(1) @ b.flatten(1) if core is None else _through_core(core, a, b))
    return sides[0] * sides[1], parts["hada_w1_b"].shape[0]


def _through_core(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a)


def _kronecker(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    """LoKr."""
    rank: int | None = None
    if "lokr_w1" in parts:
        first = parts["lokr_w1"]
    else:
        first, rank = parts["lokr_w1_a"] @ parts["lokr_w1_b"], parts["lokr_w1_b"].shape[0]
    if "lokr_w2" in parts:
        second = parts["lokr_w2"]
    else:
        a, b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        rank = b.shape[0]
        core = parts.get("lokr_t2")
        second = a @ b if core is None else _through_core(core, a, b)
    if second.ndim == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()).reshape(weight.shape), rank


def _orthogonal(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> Change:
    """OFT (Qiu et al. 2023) and BOFT (Liu et al. 2023): the weight turned, block by block.

    The blocks [k, n, n] of kohya and of today's LyCORIS become rotations by Cayley's transform, which
    ``alpha`` times the output width limits; those of the first LyCORIS (``oft_diag``) are rotations
    as they stand. BOFT has [m, k, n, n]: a butterfly of m factors.
    """
    original = weight.float()
    turns = parts["oft_diag"] if "oft_diag" in parts else _cayley(parts, original.shape[0])
    if turns.ndim == 4:
        turned = _butterfly(turns, original)
    else:
        size = turns.shape[-1]
        blocks = original.reshape(-1, size, *original.shape[1:])
        turned = torch.einsum("knm,kn...->km...", turns, blocks).reshape(original.shape)
    if "rescale" in parts:
        turned = parts["rescale"].reshape(-1, *[1] * (original.ndim - 1)) * turned
    return turned - original, None


def _cayley(parts: Parts, width: int) -> Tensor:
    blocks = parts["oft_blocks"]
    skew = blocks - blocks.transpose(-1, -2)
    limit = float(parts.get("alpha", torch.zeros(()))) * width
    if limit != 0:
        norm = skew.flatten().norm()
        skew = skew * ((norm.clamp(max=limit) + 1e-8) / (norm + 1e-8))
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    turns: Tensor = torch.matmul(one + skew, (one - skew).inverse())
    return turns


def _butterfly(factors: Tensor, weight: Tensor) -> Tensor:
    """Each factor turns the blocks of another interleaving of the rows."""
    size = factors.shape[-1]
    turned, rest = weight, weight.shape[1:]
    for level, factor in enumerate(factors):
        stride = 2**level * (size // 2)
        shuffled = turned.reshape(-1, 2, stride, *rest).transpose(1, 2).reshape(-1, size, *rest)
        shuffled = torch.einsum("bij,bj...->bi...", factor, shuffled)
        turned = shuffled.reshape(-1, stride, 2, *rest).transpose(1, 2).reshape(*weight.shape)
    return turned


def _decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: the sum's direction, with the magnitude that was trained."""
    merged = weight.float() + change
    norms = merged.transpose(0, 1).flatten(1).norm(dim=1)
    norms = norms.reshape(1, -1, *[1] * (merged.ndim - 2))
    decomposed: Tensor = merged * (magnitude / norms) - weight.float()
    return decomposed


FORMS: tuple[tuple[frozenset[str], Form], ...] = (
    (frozenset({"lora_up.weight", "lora_down.weight"}), _low_rank),
    (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), _hadamard),
    (frozenset({"weight", "on_input"}), _gains),
    *((frozenset({*first, *second}), _kronecker) for first in LOKR_FIRST for second in LOKR_SECOND),
    (frozenset({"diff"}), _full),
    (frozenset({"w_norm", "b_norm"}), _norm),
    (frozenset({"a1.weight", "a2.weight", "alpha", "b1.weight", "b2.weight"}), _generalised),
    (frozenset({"oft_blocks"}), _orthogonal),
    (frozenset({"oft_diag"}), _orthogonal),
)
"""Which parts each form needs, in the order in which the webui asks."""
