"""GFPGAN and CodeFormer, where the packages spandrel and facexlib import and the weights are there.

spandrel builds the networks (GFPGAN: arXiv 2101.04061, CodeFormer: arXiv 2206.11253), facexlib finds
and aligns the faces. Neither is asked to download: all weights have to be in ``models/GFPGAN`` or
``models/Codeformer``.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from sd_cloud.errors import CheckpointBroken, NotImplementedHere
from sd_cloud.settings import Settings

Restorer = Literal["GFPGAN", "CodeFormer"]

FACE_PX = 512
SEARCH_PX = 640
EYE_DISTANCE_PX = 5
FINDER_FILES = ("detection_Resnet50_Final.pth", "parsing_parsenet.pth")
PATTERNS: dict[Restorer, str] = {"GFPGAN": "*GFPGAN*.pth", "CodeFormer": "*codeformer*.pth"}


def restore_faces(
    image: Image.Image,
    restorer: Restorer,
    *,
    settings: Settings,
    device: torch.device | str,
    weight: float = 0.5,
    field: str | None = None,
) -> Image.Image:
    """The picture (RGB) with every face that is found restored; ``weight`` is CodeFormer's fidelity.

    Raises NotImplementedHere, naming the package or the file that is missing, and CheckpointBroken.
    """
    folders = settings.folders.gfpgan if restorer == "GFPGAN" else settings.folders.codeformer
    path = _weights(restorer, folders, field)
    finder = _finder_folder((*folders, *settings.folders.gfpgan), restorer, field)
    for package in ("spandrel", "facexlib"):
        try:
            import_module(package)
        except ImportError as error:
            raise NotImplementedHere(
                f"{restorer} needs the package {package}, which does not import here ({error})", field=field
            ) from error
    pixels = np.asarray(image.convert("RGB"))
    faces = _helper(finder, str(device))
    faces.clean_all()
    faces.read_image(np.ascontiguousarray(pixels[:, :, ::-1]))
    faces.get_face_landmarks_5(only_center_face=False, resize=SEARCH_PX, eye_dist_threshold=EYE_DISTANCE_PX)
    faces.align_warp_face()
    net = _network(path, path.stat().st_mtime_ns, str(device))
    for face in faces.cropped_faces:
        faces.add_restored_face(_restored(net, restorer, face, weight, device))
    faces.get_inverse_affine(None)
    made = np.asarray(faces.paste_faces_to_input_image())[:, :, ::-1]
    faces.clean_all()
    restored = Image.fromarray(np.ascontiguousarray(made.astype(np.uint8)))
    return restored if restored.size == image.size else restored.resize(image.size, Image.Resampling.BILINEAR)


def _restored(net: Any, restorer: Restorer, face: Any, weight: float, device: torch.device | str) -> Any:
    """One aligned face, [512, 512, 3] blue, green, red."""
    rgb = np.ascontiguousarray(np.asarray(face, np.float32)[:, :, ::-1].transpose(2, 0, 1))
    tensor = ((torch.from_numpy(rgb) / 255.0 - 0.5) / 0.5).unsqueeze(0).to(device)
    with torch.inference_mode():
        if restorer == "GFPGAN":
            out = net(tensor, return_rgb=False)[0]
        else:
            out = net(tensor, weight=weight, adain=True)[0]
    out = out.squeeze(0).float().cpu().clamp(-1, 1).numpy()
    return ((out + 1) / 2 * 255.0).astype(np.uint8).transpose(1, 2, 0)[:, :, ::-1]


@lru_cache(maxsize=2)
def _network(path: Path, mtime_ns: int, device: str) -> Any:
    spandrel = import_module("spandrel")
    try:
        net = spandrel.ModelLoader(device=device).load_from_file(str(path)).model
    except Exception as error:  # spandrel raises whatever the architecture's own code does
        raise CheckpointBroken(f"{path.name} cannot be loaded: {error}") from error
    if hasattr(net, "different_w"):
        net.different_w = True
    return net.eval()


@lru_cache(maxsize=1)
def _helper(folder: Path, device: str) -> Any:
    module = import_module("facexlib.utils.face_restoration_helper")
    return module.FaceRestoreHelper(
        upscale_factor=1,
        face_size=FACE_PX,
        crop_ratio=(1, 1),
        det_model="retinaface_resnet50",
        save_ext="png",
        use_parse=True,
        device=torch.device(device),
        model_rootpath=str(folder),
    )


def _weights(restorer: Restorer, folders: tuple[Path, ...], field: str | None) -> Path:
    for folder in folders:
        found = [path for path in sorted(folder.glob("*.pth")) if path.match(PATTERNS[restorer])]
        if found:
            return found[-1]  # the newest version by name
    raise NotImplementedHere(f"no weights for {restorer} are installed in {folders[0]}", field=field)


def _finder_folder(folders: tuple[Path, ...], restorer: Restorer, field: str | None) -> Path:
    for folder in folders:
        if all((folder / name).is_file() for name in FINDER_FILES):
            return folder
    names = " and ".join(FINDER_FILES)
    raise NotImplementedHere(f"{restorer} needs {names} of facexlib in {folders[0]}", field=field)
