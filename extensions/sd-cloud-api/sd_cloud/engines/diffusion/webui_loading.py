"""What a webui does beside giving it weights when it goes on with another checkpoint.

It has one checkpoint in memory (``sd_checkpoints_limit`` is 1). One of the same configuration gets
its weights in place of the other's. For another configuration a model is built anew, which draws
numbers from torch's generator, and lets go of the networks that the prompt called for.
"""

from __future__ import annotations

from collections.abc import Hashable

from sd_cloud.engines.diffusion.model import Model

VISION_TOWERS = {1024: (1280, 257), 1280: (1664, 257)}
"""Width and places of the vision half of ViT-H-14 and ViT-bigG-14, by the width of their text half
(mlfoundations/open_clip, ``model_configs``)."""
DRAWN_TOGETHER = 16
"""torch fills a normal tensor by so many numbers; of a remainder it draws the last ones again."""


def is_built_anew(before: Model, after: Model) -> bool:
    """Whether the webui builds a new model for ``after`` when ``before`` is in memory."""
    return before.file != after.file and _configuration(before) != _configuration(after)


def _configuration(model: Model) -> Hashable:
    """The yaml that the webui would build it from: the one beside it, or the one of its kind."""
    sidecar = model.file.with_suffix(".yaml")
    if sidecar.is_file():
        return sidecar
    layout = model.layout
    return layout.family, layout.unet["in_channels"], model.prediction if layout.family == "sd2" else None


def numbers_drawn(model: Model) -> int:
    """How many numbers building a model takes from the generator before its weights replace them.

    Those of CLIP's token and position embeddings; of OpenCLIP, whose text half is not initialised,
    those of the vision half that is thrown away. Of an OpenCLIP of another size than the published
    ones that is not known; it counts nothing. SD 3 draws none.
    """
    if model.layout.family == "sd3":
        return 0
    count = 0
    for encoder in model.text:
        if encoder.kind == "clip_l":
            embeddings = encoder.model.embeddings
            parts = [embeddings.token_embedding.weight, embeddings.position_embedding.weight]
            count += sum(_drawn_for(part.numel()) for part in parts)
        elif encoder.width in VISION_TOWERS:
            width, places = VISION_TOWERS[encoder.width]
            count += sum(_drawn_for(size) for size in (width, places * width, width * encoder.width))
    return count


def _drawn_for(size: int) -> int:
    return size + (DRAWN_TOGETHER if size % DRAWN_TOGETHER else 0)
