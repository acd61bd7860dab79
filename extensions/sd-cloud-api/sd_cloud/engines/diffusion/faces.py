"""Restoring faces in a made picture, where the weights for it are installed."""

from __future__ import annotations

import torch
from PIL import Image

from sd_cloud.engines.diffusion.extras_faces import restore_faces
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import BadRequest, NotImplementedHere
from sd_cloud.settings import Settings

FIELD = "restore_faces"


def restore_face(
    image: Image.Image, options: Options, settings: Settings, device: torch.device
) -> tuple[Image.Image, str | None]:
    """The picture with restored faces, or as it is and a sentence on why.

    The webui, too, gives the picture unrestored when it cannot load its model. Raises BadRequest
    for a model that is none of the two, and CheckpointBroken for weights that are broken.
    """
    wanted = options.text("face_restoration_model")
    restorer = {"gfpgan": "GFPGAN", "codeformer": "CodeFormer"}.get(wanted.lower())
    if restorer is None:
        raise BadRequest(
            f"{wanted!r} is no face restorer; there are CodeFormer, GFPGAN",
            field="override_settings.face_restoration_model",
        )
    try:
        restored = restore_faces(
            image,
            "GFPGAN" if restorer == "GFPGAN" else "CodeFormer",
            settings=settings,
            device=device,
            weight=options.number("code_former_weight"),
            field=FIELD,
        )
    except NotImplementedHere as error:
        return image, f"Faces were not restored: {error.args[0]}"
    return restored, None
