"""Preprocessors that look at faces. What the published networks say is given here, not computed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from sd_cloud.engines.diffusion.preprocess import face_analysis, onnx_network
from sd_cloud.engines.diffusion.preprocess.detect import Detection, Pixels, detect
from sd_cloud.engines.diffusion.preprocess.face_analysis import ALIGNED, Face, aligned, embedding, faces
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers
from sd_cloud.engines.diffusion.preprocess.table import FACE_ID_FILES, INSTANT_ID_FILES, MODULES
from sd_cloud.errors import BadRequest, CheckpointBroken, NotImplementedHere
from sd_cloud.settings import settings_below

#: An ONNX network that gives its input back: float32 [1, 2].
IDENTITY = bytes.fromhex(
    "080812003a3f0a100a017812017922084964656e746974791201675a130a0178120e0a0c080112080a0208010a020802"
    "62130a0179120e0a0c080112080a0208010a02080242040a00100d"
)
#: Eyes, nose and mouth, as shares of half a face.
POINTS = np.array([[-0.75, -0.75], [0.75, -0.75], [0, 0], [-0.5, 0.75], [0.5, 0.75]], np.float32)


def scrfd(*seen: tuple[int, int, int, float, float]) -> list[Numbers]:
    """SCRFD's outputs for faces (stride, row, column, half a side in px, how sure)."""
    sides = [640 // stride for stride in (8, 16, 32)]
    outputs = [np.zeros((2 * side * side, width), np.float32) for width in (1, 4, 10) for side in sides]
    for stride, row, column, half, sure in seen:
        level = (8, 16, 32).index(stride)
        cell = 2 * (row * sides[level] + column)
        outputs[level][cell] = sure
        outputs[3 + level][cell] = half / stride
        outputs[6 + level][cell] = POINTS.ravel() * half / stride
    return outputs


def sees(monkeypatch: pytest.MonkeyPatch, *seen: tuple[int, int, int, float, float]) -> None:
    monkeypatch.setattr(face_analysis, "session", lambda path: lambda values: scrfd(*seen))


def picture(height: int = 128, width: int = 128) -> Pixels:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)


def test_faces_come_surest_first_in_px_of_the_image_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, again, two = (8, 20, 10, 40.0, 0.7), (8, 20, 11, 40.0, 0.6), (32, 5, 15, 64.0, 0.9)
    sees(monkeypatch, one, again, two, (16, 30, 3, 20.0, 0.4))
    found = faces(Path("any.onnx"), picture(160, 320))  # the detector sees twice its size
    assert [round(face.sure, 3) for face in found] == [0.9, 0.7]
    assert [face.box.tolist() for face in found] == [[208, 48, 272, 112], [20, 60, 60, 100]]
    assert (found[1].points == (POINTS * 40 + [80, 160]) / 2).all()


def test_the_detector_sees_the_image_in_a_corner_of_its_square_and_grey_levels_around_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Numbers] = []

    def run(values: Numbers) -> list[Numbers]:
        given.append(values)
        return scrfd()

    monkeypatch.setattr(face_analysis, "session", lambda path: run)
    assert faces(Path("any.onnx"), np.full((200, 100, 3), (255, 127, 0), np.uint8)) == []
    (seen,) = given
    assert seen.shape == (1, 3, 640, 640) and seen.dtype == np.float32
    assert np.allclose(seen[0, :, 639, 319], np.array([127.5, -0.5, -127.5]) / 128)
    assert (seen[0, :, :, 320:] == -127.5 / 128).all()


def test_another_network_than_scrfd_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_analysis, "session", lambda path: lambda values: scrfd()[:6])
    with pytest.raises(CheckpointBroken, match=r"det_10g\.onnx"):
        faces(Path("det_10g.onnx"), picture())


def test_a_turned_and_small_face_is_brought_upright_to_where_it_belongs() -> None:
    turn = cv2.getRotationMatrix2D((60, 60), 25, 0.5)
    points = (ALIGNED @ turn[:, :2].T + turn[:, 2] + (30, 20)).astype(np.float32)
    image = np.zeros((160, 160, 3), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(float(x)), round(float(y))), 3, (255, 255, 255), -1)
    made = aligned(image, points)
    assert made.shape == (112, 112, 3)
    assert all(made[round(float(y)), round(float(x))].all() for x, y in ALIGNED)
    assert (made > 0).mean() < 0.1


def test_an_identity_is_512_numbers_of_the_aligned_face(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Numbers] = []

    def run(values: Numbers) -> list[Numbers]:
        given.append(values)
        return [np.arange(512, dtype=np.float32)[None]]

    monkeypatch.setattr(face_analysis, "session", lambda path: run)
    image, face = picture(112, 112), Face(np.zeros(4), ALIGNED, 1.0)
    numbers = embedding(Path(FACE_ID_FILES[1]), image, face)
    assert numbers.shape == (512,) and numbers.dtype == np.float32
    assert np.allclose(given[0][0], image.transpose(2, 0, 1) / 127.5 - 1, atol=0.02)
    monkeypatch.setattr(face_analysis, "session", lambda path: lambda values: scrfd())
    with pytest.raises(CheckpointBroken, match=r"w600k_r50\.onnx"):
        embedding(Path(FACE_ID_FILES[1]), image, face)


def instant_id(tmp_path: Path, image: Pixels) -> Pixels:
    settings = settings_below(tmp_path)
    path = settings.folders.annotators[0] / INSTANT_ID_FILES[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return detect(MODULES["instant_id_face_keypoints"], image, Detection(128), settings, field="x.module")


def test_instant_ids_map_has_the_points_of_the_largest_face(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sees(monkeypatch, (8, 20, 20, 20.0, 0.9), (32, 10, 10, 128.0, 0.6))
    drawn = instant_id(tmp_path, picture())
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
    for (x, y), colour in zip((POINTS * 128 + 320) / 5, colours, strict=True):
        assert tuple(drawn[int(y), int(x)]) == colour
    assert drawn.shape == (128, 128, 3) and not drawn[:34].any()
    assert tuple(drawn[56, 56]) == (int(255 * 0.6), 0, 0)  # the way from the nose to the first eye


def test_where_no_face_is_seen_the_request_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sees(monkeypatch)
    with pytest.raises(BadRequest, match=r"x\.module: no face is seen"):
        instant_id(tmp_path, picture())


def test_an_onnx_network_runs_and_one_that_takes_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(IDENTITY)
    run = onnx_network.session(path)
    assert run(np.array([[1.0, 2.0]], np.float32))[0].tolist() == [[1.0, 2.0]]
    with pytest.raises(CheckpointBroken, match=r"other\.onnx .* 1x3x4"):
        run(np.zeros((1, 3, 4), np.float32))


# --- MediaPipe ------------------------------------------------------------------------------------


class Mesh:
    """Stands for MediaPipe's network: each face's points all lie in one corner, at the middle or the end."""

    asked: dict[str, object]

    def __init__(self, **asked: object) -> None:
        Mesh.asked = asked

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *failure: object) -> None: ...

    def process(self, image: Pixels) -> SimpleNamespace:
        return SimpleNamespace(multi_face_landmarks=[mesh_face(0.1, 0.8), mesh_face(0.1, 0.4)])


def mesh_face(start: float, end: float) -> SimpleNamespace:
    points = [SimpleNamespace(x=start, y=start) for _ in range(478)]
    points[1] = SimpleNamespace(x=end, y=end)
    points[468] = SimpleNamespace(x=end, y=start)
    return SimpleNamespace(landmark=points)


def mediapipe() -> SimpleNamespace:
    parts = ("FACE_OVAL", "LEFT_EYE", "LEFT_EYEBROW", "RIGHT_EYE", "RIGHT_EYEBROW", "LIPS")
    lines = {f"FACEMESH_{part}": frozenset({(0, 1)} if part == "LIPS" else set()) for part in parts}

    def draw(canvas: Pixels, face: Any, lines: Any, points: None, how: Any) -> None:
        for line in lines:
            one, two = (
                (int(face.landmark[place].x * 128), int(face.landmark[place].y * 128)) for place in line
            )
            cv2.line(canvas, one, two, how[line].color, how[line].thickness)

    drawing = SimpleNamespace(DrawingSpec=SimpleNamespace, draw_landmarks=draw)
    face_mesh = SimpleNamespace(FaceMesh=Mesh, **lines)
    return SimpleNamespace(solutions=SimpleNamespace(face_mesh=face_mesh, drawing_utils=drawing))


def mesh_map(tmp_path: Path) -> Pixels:
    how = Detection(128, a=3, b=0.25)
    return detect(MODULES["mediapipe_face"], picture(), how, settings_below(tmp_path), field="x.module")


def test_mediapipes_faces_are_drawn_in_colours_and_too_small_ones_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", mediapipe())
    drawn = mesh_map(tmp_path)
    assert tuple(drawn[64, 64]) == (10, 180, 10)
    assert tuple(drawn[12, int(0.8 * 128)]) == (250, 200, 10)  # the right pupil, red first
    assert not drawn[12, int(0.4 * 128)].any()
    assert Mesh.asked["max_num_faces"] == 3 and Mesh.asked["min_detection_confidence"] == 0.25


def test_without_a_mediapipe_that_has_the_mesh_the_package_and_its_versions_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(NotImplementedHere, match=r"x\.module: .*mediapipe>=0\.10,<0\.10\.30"):
        mesh_map(tmp_path)
    monkeypatch.setitem(sys.modules, "mediapipe", SimpleNamespace(__version__="1.2.3"))
    with pytest.raises(NotImplementedHere, match=r"<0\.10\.30; 1\.2\.3 has no face mesh"):
        mesh_map(tmp_path)
