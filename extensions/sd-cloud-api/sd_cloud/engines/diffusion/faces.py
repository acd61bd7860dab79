"""Restoring faces in a made picture, where the weights for it are installed."""

from __future__ import annotations

import torch
from PIL import Image

from sd_cloud.engines.diffusion.options import Options
from sd_cloud.settings import Settings


def restore_face(
    image: Image.Image, options: Options, settings: Settings, device: torch.device
) -> tuple[Image.Image, str | None]:
    """The picture with restored faces, or as it is and a sentence on why.

    The webui, too, gives the picture unrestored when it cannot load its model.
    """
    wanted = options.text("face_restoration_model")
    folders = settings.folders.gfpgan if wanted == "GFPGAN" else settings.folders.codeformer
    files = [path for folder in folders if folder.is_dir() for path in folder.glob("*.pth")]
    if not files:
        return image, f"Faces were not restored: no weights for {wanted} are installed"
    return image, f"Faces were not restored: {wanted} needs spandrel and facexlib, which are not installed"
