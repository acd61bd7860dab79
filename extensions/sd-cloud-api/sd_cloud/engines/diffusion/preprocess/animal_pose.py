"""AnimalPose: animals' joints by an RTMPose of AP-10K's 17 (Yu et al., arXiv 2108.12617), drawn as the
ControlNet of that name was trained on (abehonest/ControlNet_AnimalPose)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from sd_cloud.engines.diffusion.preprocess import rtmpose, yolox
from sd_cloud.engines.diffusion.preprocess.detect import Detected
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.onnx_network import session
from sd_cloud.engines.diffusion.preprocess.pose_drawing import Point, people_json

POSE_PX = (256, 256)
ANIMALS = range(14, 24)  # COCO's kinds: bird to giraffe
LINE_PX = 5
# AP-10K's joints: left eye, right eye, nose, neck, root of the tail; left shoulder, elbow, front paw,
# right …; left hip, knee, back paw, right ….
LINES = (
    ((0, 1), (255, 255, 255)),
    ((1, 2), (100, 255, 100)),
    ((0, 2), (150, 255, 255)),
    ((2, 3), (100, 50, 255)),
    ((3, 8), (50, 150, 200)),
    ((8, 9), (0, 255, 255)),
    ((9, 10), (0, 150, 0)),
    ((3, 5), (0, 0, 255)),
    ((5, 6), (0, 0, 150)),
    ((6, 7), (255, 50, 255)),
    ((3, 4), (255, 0, 255)),
    ((4, 14), (255, 0, 0)),
    ((14, 15), (150, 0, 0)),
    ((15, 16), (255, 255, 100)),
    ((4, 11), (0, 150, 0)),
    ((11, 12), (255, 255, 0)),
    ((12, 13), (150, 150, 150)),
)


def pose(bench: Bench, image: Pixels) -> Detected:
    """Every joint is drawn, however sure the network is of it."""
    detector, network = (session(path) for path in bench.files.values())
    boxes = yolox.boxes(detector, image, ANIMALS) or []
    animals = [_animal(rtmpose.joints(network, image, box, POSE_PX)) for box in boxes]
    canvas = np.zeros(image.shape, np.uint8)
    for animal in animals:
        for (start, end), colour in LINES:
            one, two = ((int(x), int(y)) for x, y in (animal[start], animal[end]))
            cv2.line(canvas, one, two, colour, LINE_PX)
    return Detected(canvas, people_json([], (image.shape[0], image.shape[1]), animals))


def _animal(joints: np.ndarray) -> Sequence[Point]:
    return [(float(x), float(y)) for x, y, _ in joints]
