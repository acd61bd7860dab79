"""The outlines of faces, eyes and mouths as MediaPipe's face mesh sees them (Kartynnik et al., arXiv
1907.06724), drawn as the ControlNet for them was trained on (CrucibleAI/ControlNetMediaPipeFace).

MediaPipe brings its networks with it, up to 0.10.2x: later versions have no ``solutions`` and no weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.errors import NotImplementedHere

WANTED = "mediapipe>=0.10,<0.10.30"
LEAST_FACE_PX = 64
LINE_PX, PUPIL_PX = 2, 2
# Blue, green, red.
LINES = (
    ("FACE_OVAL", (10, 200, 10)),
    ("LEFT_EYE", (180, 200, 10)),
    ("LEFT_EYEBROW", (180, 220, 10)),
    ("RIGHT_EYE", (10, 200, 180)),
    ("RIGHT_EYEBROW", (10, 220, 180)),
    ("LIPS", (10, 180, 10)),
)
PUPILS = {468: (10, 200, 250), 473: (250, 200, 10)}


def faces(bench: Bench, image: Pixels, most: int, least_sure: float) -> Pixels:
    """At most ``most`` faces of which the network is ``least_sure`` (0..1) or surer; black where none is.

    Raises NotImplementedHere where the package is not installed, or not in a version that has the mesh.
    """
    solutions = _solutions(bench.field)
    mesh, drawing = solutions.face_mesh, solutions.drawing_utils
    with mesh.FaceMesh(
        static_image_mode=True,
        max_num_faces=most,
        refine_landmarks=True,
        min_detection_confidence=least_sure,
    ) as network:
        found = network.process(image).multi_face_landmarks or []
    lines = {
        line: drawing.DrawingSpec(color=colour, thickness=LINE_PX)
        for part, colour in LINES
        for line in getattr(mesh, f"FACEMESH_{part}")
    }
    canvas = np.zeros_like(image)
    for face in found:
        if _size_px(face, image) >= LEAST_FACE_PX:
            drawing.draw_landmarks(canvas, face, lines.keys(), None, lines)
            _draw_pupils(canvas, face)
    return np.ascontiguousarray(canvas[:, :, ::-1])


def _solutions(field: str) -> Any:
    needs = f"the preprocessor 'mediapipe_face' needs the Python package {WANTED}"
    try:
        found = import_module("mediapipe")
    except ImportError as error:
        raise NotImplementedHere(f"{needs}, which does not import here ({error})", field=field) from error
    if not hasattr(found, "solutions"):
        raise NotImplementedHere(
            f"{needs}; {getattr(found, '__version__', 'the one here')} has no face mesh any more", field=field
        )
    return found.solutions


def _size_px(face: Any, image: Pixels) -> float:
    """The shorter side of what a face's points take up."""
    across, down = ([getattr(point, axis) for point in face.landmark] for axis in ("x", "y"))
    return float(min((max(across) - min(across)) * image.shape[1], (max(down) - min(down)) * image.shape[0]))


def _draw_pupils(canvas: Pixels, face: Any) -> None:
    height, width = canvas.shape[:2]
    for place, colour in PUPILS.items():
        point = face.landmark[place]
        if 0 <= point.x < 1 and 0 <= point.y < 1:
            x, y = int(width * point.x), int(height * point.y)
            canvas[y - PUPIL_PX : y + PUPIL_PX, x - PUPIL_PX : x + PUPIL_PX] = colour
