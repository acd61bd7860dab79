"""Restoring faces in a made picture, where the weights for it are installed."""

from __future__ import annotations

import torch
from PIL import Image

from sd_cloud.engines.diffusion.extras_faces import Restorer, restore_faces
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import CheckpointBroken, NotImplementedHere
from sd_cloud.settings import Settings


def restore_face(
    image: Image.Image, options: Options, settings: Settings, device: torch.device
) -> tuple[Image.Image, str | None]:
    """The picture with restored faces, or as it is and a sentence on why.

    The webui, too, gives the picture unrestored when it cannot load its model.
    """
    wanted: Restorer = "GFPGAN" if options.text("face_restoration_model") == "GFPGAN" else "CodeFormer"
    try:
        restored = restore_faces(
            image, wanted, settings=settings, device=device, weight=options.number("code_former_weight")
        )
    except (NotImplementedHere, CheckpointBroken) as error:
        return image, f"Faces were not restored: {error}"
    return restored, None
