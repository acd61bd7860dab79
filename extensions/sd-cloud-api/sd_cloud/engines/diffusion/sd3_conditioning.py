"""Prompts for Stable Diffusion 3: both CLIPs side by side, then T5 (or zeros) after them.

As webui 1.10.1's ``models/sd3/sd3_cond.py``: hidden states before the last layer, without the final
norm, joined and padded with zeros to the transformer's context; emphasis restores the mean over both
at once; T5 sees as many tokens as CLIP and no weights; pooled states are those of the first chunk,
CLIP-L's without a projection; textual inversions reach CLIP-L alone, CLIP-G sees the first word of the
vocabulary in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.prompt_chunks import Chunk
from sd_cloud.engines.diffusion.sd3 import Sd3Model
from sd_cloud.engines.diffusion.text_encoders import Placed, TextEncoder

Prepare = Callable[[TextEncoder, Sequence[Chunk]], tuple[Tensor, Sequence[Placed]]]
"""Token ids [N, 77] of chunks for one encoder, and the textual inversions among them."""
Emphasise = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def encode_sd3(
    model: Sd3Model,
    texts: Sequence[str],
    batch: Sequence[Sequence[Chunk]],
    prepare: Prepare,
    emphasise: Emphasise,
    *,
    emphasis: bool,
    with_t5: bool = True,
) -> tuple[Tensor, Tensor]:
    """Context [N, tokens, width] and pooled [N, width] of texts already cut into chunks.

    ``emphasise`` takes states [N, 77, width] and weights [N, 77].
    """
    width = int(model.layout.unet["joint_attention_dim"])
    pieces: list[Tensor] = []
    pooled: Tensor | None = None
    for number in range(len(batch[0])):
        chunks = [row[number] for row in batch]
        states, pools = zip(*_states(model.text, chunks, prepare), strict=True)
        joined = torch.cat(states, dim=-1)
        joined = functional.pad(joined, (0, width - joined.shape[-1]))
        weights = torch.tensor([chunk.weights for chunk in chunks], device=joined.device, dtype=joined.dtype)
        pieces.append(emphasise(joined, weights))
        if pooled is None:
            pooled = torch.cat(pools, dim=-1)
    assert pooled is not None
    clip = torch.cat(pieces, dim=1)
    if model.t5 is None or not with_t5:
        t5 = torch.zeros_like(clip)
    else:
        model.bring(model.t5.model)
        t5 = model.t5.encode(texts, clip.shape[1], emphasis=emphasis).to(clip)
    return torch.cat([clip, t5], dim=1), pooled


def _states(
    encoders: Sequence[TextEncoder], chunks: Sequence[Chunk], prepare: Prepare
) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden and pooled states of each encoder."""
    for number, encoder in enumerate(encoders):
        ids, placed = prepare(encoder, chunks)
        penultimate = encoder.hidden(ids, encoder.layers - 1, placed if number == 0 else ())
        last = encoder.continue_from(penultimate, encoder.layers - 1, encoder.layers)
        if encoder.projection is not None:
            yield penultimate, encoder.pooled(ids, last)
        else:
            ends = ids.argmax(dim=-1)
            yield penultimate, encoder.normed(last)[torch.arange(ids.shape[0], device=ids.device), ends]
