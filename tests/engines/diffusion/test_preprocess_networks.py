"""Preprocessors that are networks: what their published files hold, strictly, and that a map comes out.

``preprocess_outlines.txt`` has the names and shapes of those files; the weights here are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sd_cloud.engines.diffusion.preprocess import (
    animal_pose,
    anime_face,
    dwpose,
    face_parts,
    leres_boost,
    mobile_sam,
    oneformer,
    pose,
    retinaface,
    tiny_vit,
    uniformer,
    zoe,
)
from sd_cloud.engines.diffusion.preprocess.detect import Detected, Detection, Pixels, detect, detected
from sd_cloud.engines.diffusion.preprocess.loading import Bench, _loaded
from sd_cloud.engines.diffusion.preprocess.networks import AS_SENT
from sd_cloud.engines.diffusion.preprocess.pose import Box
from sd_cloud.engines.diffusion.preprocess.pose_drawing import Person, draw_people
from sd_cloud.engines.diffusion.preprocess.pose_groups import Joint, grouped
from sd_cloud.engines.diffusion.preprocess.table import FACE_PARTS_FILES, MODULES, NETWORK_FILES, REFUSED
from sd_cloud.errors import BadRequest, CheckpointBroken, NotImplementedHere
from sd_cloud.settings import Settings, settings_below

OUTLINES = Path(__file__).with_name("preprocess_outlines.txt")
SIDE = 64

Shape = tuple[int, ...]
#: Widths of the large files, and the small ones that stand for them here.
SMALLER = {
    "depth_anything": {384: 64, 1152: 192, 1536: 256},
    "mobile_sam": {5: 1, 10: 1, 160: 32, 320: 32, 480: 96, 640: 128, 960: 96, 1280: 128, 2048: 16, 1000: 2},
    "leres/latest_net_G": {64: 4, 128: 8, 256: 16, 512: 32, 1024: 64},
    "oneformer": {
        **{side: side // 8 for side in (96, 192, 256, 384, 576, 768, 1024, 1152, 1536, 2048, 2304, 3072)},
        **{4608: 576, 6144: 768, 49408: 2},
    },
    "zoedepth": {1024: 64, 2048: 128, 3072: 192, 4096: 256, 577: 2},
}


@dataclass
class Outline:
    """``wrap``: the key under which a file holds its tensors."""

    wrap: str
    shapes: dict[str, Shape]
    whole: set[str]


def outlines(path: Path = OUTLINES) -> dict[str, Outline]:
    found: dict[str, Outline] = {}
    for line in path.read_text().splitlines():
        if line.startswith("# "):
            name, _, wrap = line[2:].partition(" ")
            current = found[name] = Outline(wrap, {}, set())
            continue
        key, *facts = line.split(" ")
        if facts[-1:] == ["int"]:
            current.whole.add(key)
        numbers = facts[0] if facts and facts[0] != "int" else ""
        current.shapes[key] = tuple(int(one) for one in numbers.split(",") if one)
    return found


FILES = outlines()


def tensors(name: str) -> dict[str, torch.Tensor]:
    """Random weights of the outline's shapes: one number for a whole kernel, so that files stay small."""
    random = torch.Generator().manual_seed(0)
    smaller = next((widths for part, widths in SMALLER.items() if name.startswith(part)), {})
    made = {}
    for key, shape in FILES[name].shapes.items():
        shape = tuple(smaller.get(side, side) for side in shape)
        if key in FILES[name].whole:
            made[key] = torch.zeros(shape, dtype=torch.int64)
        elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            made[key] = torch.ones(1).expand(shape)
        else:
            first = shape[:2] + (1,) * (len(shape) - 2)
            spread = np.prod(shape[1:2]) ** 0.5 * np.prod(shape[2:])
            made[key] = (torch.randn(first, generator=random) / spread).expand(shape)
    return made


POSES = {
    "openpose",
    "openpose_face",
    "openpose_faceonly",
    "openpose_hand",
    "openpose_full",
}

#: Published in ONNX: they bring their shapes with them.
IN_ONNX = {name for name, files in NETWORK_FILES.items() if any(".onnx" in file for file in files)}

#: Their package brings the weights with it.
IN_PACKAGES = {name for name, files in NETWORK_FILES.items() if not files}

#: What random weights give them lies within one level; ``hed`` and ``test_preprocess.py`` show the rest.
IN_LEVELS = {"hed_safe", "scribble_hed", "softedge_teed", "softedge_anyline"}


def small_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_vit, "WIDTHS", (64, 128, 32, 32))
    monkeypatch.setattr(mobile_sam, "DECODER_WIDTH", 16)
    monkeypatch.setattr(mobile_sam, "SIDE_PX", SIDE)
    monkeypatch.setattr(mobile_sam, "POINTS", 2)


@pytest.fixture(autouse=True)
def small_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that look at one size, however large the picture is, look at a small one."""
    monkeypatch.setattr(leres_boost, "FIELD_PX", 128)
    monkeypatch.setattr(leres_boost, "LARGEST_PX", 192)
    monkeypatch.setattr(zoe, "NET_PX", (64, 64))
    small_sam(monkeypatch)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Where the weights are; networks that bring each picture to one size bring it to a small one."""
    monkeypatch.setattr(anime_face, "SIDE_PX", SIDE)
    monkeypatch.setattr(uniformer, "SHORTEST", SIDE)
    for kind in ("ADE20K", "COCO"):
        monkeypatch.setattr(oneformer, kind, replace(getattr(oneformer, kind), shortest=SIDE))
    yield settings_below(tmp_path)
    _loaded.cache_clear()


def write(name: str, settings: Settings, change: Callable[[dict[str, torch.Tensor]], object] = len) -> Path:
    path = settings.folders.annotators[0] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    own = tensors(name)
    change(own)
    wrap = FILES[name].wrap
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in own.items()}, path)
    else:
        torch.save({wrap: own} if wrap else own, path)
    return path


def picture(height: int = SIDE, width: int = SIDE) -> Pixels:
    """Bright stripes and a dark disc."""
    down, across = np.mgrid[:height, :width]
    image = np.stack([(across * 7) % 256, (down * 5) % 256, 128 + across * 0], axis=2).astype(np.uint8)
    image[(down - height // 2) ** 2 + (across - width // 2) ** 2 < 100] = 20
    return image


def run(name: str, settings: Settings, image: Pixels, resolution: float = SIDE) -> Pixels:
    module = MODULES[name]
    if module.is_inpaint:
        image = np.dstack([image, 255 * (image[:, :, 0] == 20).astype(np.uint8)])
    return detect(
        module, image, Detection(resolution, module.slider_1.value, module.slider_2.value), settings
    )


@pytest.mark.parametrize("name", sorted(set(NETWORK_FILES) - POSES - IN_ONNX - IN_PACKAGES - AS_SENT.keys()))
def test_a_map_comes_from_the_published_files_layout(name: str, settings: Settings) -> None:
    for file in NETWORK_FILES[name]:
        write(file, settings)
    made = run(name, settings, picture(48, 40))
    assert made.shape == (77, SIDE, 3) and made.dtype == np.uint8
    assert len(np.unique(made)) > 1 or name in IN_LEVELS


def test_dsines_map_is_cut_to_the_size_of_a_picture_that_was_enlarged(settings: Settings) -> None:
    write("normal_dsine/dsine.pt", settings)
    made = run("normal_dsine", settings, picture(48, 40))
    assert made.shape == (48, 40, 3) and len(np.unique(made)) > 1


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_file_that_lacks_a_tensor_or_has_one_too_many_is_named(file: str, settings: Settings) -> None:
    last = list(FILES[file].shapes)[-1]
    write(file, settings, lambda own: own.pop(last))
    with pytest.raises(CheckpointBroken, match=Path(file).name + ".*lacks"):
        use(file, settings)
    write(file, settings, lambda own: own.setdefault("another.weight", torch.zeros(1)))
    with pytest.raises(CheckpointBroken, match=Path(file).name + ".*another"):
        use(file, settings)


def use(file: str, settings: Settings) -> None:
    """Runs what the file is for; hands and faces are looked for in people only, so a place is given."""
    if file == leres_boost.MERGE_FILE:  # by itself: LeReS, which comes before it, has a file of its own
        depth = picture()[:, :, 0].astype(np.float32)
        leres_boost._merged(Bench({file: settings.folders.annotators[0] / file}), depth, depth)
        return
    parts = {pose.HAND_FILE: pose.hand, pose.FACE_FILE: pose.face}
    if file in parts:
        parts[file](Bench({file: settings.folders.annotators[0] / file}), picture(), Box(0, 0, 32))
        return
    if file in FACE_PARTS_FILES:  # the second needs a face that the first sees
        bench = Bench({file: settings.folders.annotators[0] / file})
        if file == FACE_PARTS_FILES[0]:
            retinaface.faces(bench, picture(), file=file)
        bench.net(face_parts.BiSeNet)
        return
    run(next(module for module, files in NETWORK_FILES.items() if file in files), settings, picture())


@pytest.mark.parametrize("name", sorted(set(NETWORK_FILES) - IN_PACKAGES))
def test_without_its_weights_a_preprocessor_names_itself_the_files_and_the_folder(
    name: str, settings: Settings
) -> None:
    with pytest.raises(NotImplementedHere) as caught:
        run(name, settings, picture())
    said = str(caught.value)
    assert repr(name) in said and str(settings.folders.annotators[0]) in said
    assert all(file in said for file in NETWORK_FILES[name])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_run_a_files_code_is_refused_with_that_reason_though_the_file_is_there(
    name: str, settings: Settings
) -> None:
    path = settings.folders.annotators[0] / MODULES[name].weights
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(NotImplementedHere, match=f"{name}.*TorchScript archive.*runs no code"):
        run(name, settings, picture())


def test_weights_are_found_where_the_extension_keeps_them_and_where_a_flag_says(settings: Settings) -> None:
    own, extensions = settings.folders.annotators
    assert extensions.parts[-4:] == ("extensions", "sd-webui-controlnet", "annotator", "downloads")
    path = write("lineart/sk_model.pth", settings)
    moved = extensions / "lineart" / "sk_model.pth"
    moved.parent.mkdir(parents=True)
    path.rename(moved)
    expected = run("lineart", settings, picture())
    other = settings.data_dir / "other"
    (other / "lineart").mkdir(parents=True)
    moved.rename(other / "lineart" / "sk_model.pth")
    with pytest.raises(NotImplementedHere):
        run("lineart", settings, picture())
    flagged = replace(settings, folders=replace(settings.folders, annotators=(own, other)))
    assert (run("lineart", flagged, picture()) == expected).all()


# --- faces ----------------------------------------------------------------------------------------


def test_facexlibs_map_is_the_face_nearest_to_the_middle_upright_and_grey_on_white(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in FACE_PARTS_FILES:
        write(file, settings)
    boxes = np.array([[0, 0, 90, 90], [200, 200, 300, 300]], np.float32)
    points = np.stack([face_parts.ALIGNED / 8, face_parts.ALIGNED / 4 + 192]).astype(np.float32)
    monkeypatch.setattr(retinaface, "faces", lambda bench, image, *, file: (boxes, points))
    skin = torch.zeros(1, 19, 512, 512)
    skin[:, 1, 100:400], skin[:, 16, 400:] = 1, 1
    monkeypatch.setattr(face_parts.BiSeNet, "forward", lambda self, pixels: skin)
    image = np.full((512, 512, 3), (200, 100, 50), np.uint8)
    image[:150] = 255  # never seen: the middle face is further down
    made = run("facexlib", settings, image)
    assert made.shape == (512, 512, 3)
    assert (made[:100] == 255).all() and (made[400:] == 255).all()
    assert (np.abs(made[100:400].astype(int) - int(0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1).all()
    monkeypatch.setattr(retinaface, "faces", lambda bench, image, *, file: (boxes[:0], points[:0]))
    with pytest.raises(BadRequest, match="no face is seen"):
        run("facexlib", settings, image)


def test_retinaface_gives_boxes_and_points_at_the_places_of_its_three_levels(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(FACE_PARTS_FILES[0], settings)
    priors = retinaface._priors((64, 96))
    assert len(priors) == 2 * (8 * 12 + 4 * 6 + 2 * 3)

    def seen(self: retinaface.RetinaFace, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sure = torch.zeros(len(priors))
        sure[2 * 96 + 2 * 7 + 1] = 0.99  # row 1, column 1 of the second level, its larger box: 128 px
        return torch.zeros(len(priors), 4), sure, torch.zeros(len(priors), 10)

    monkeypatch.setattr(retinaface.RetinaFace, "forward", seen)
    bench = Bench({FACE_PARTS_FILES[0]: path})
    boxes, points = retinaface.faces(bench, picture(64, 96), file=FACE_PARTS_FILES[0])
    assert np.allclose(boxes, [[24 - 64, 24 - 64, 24 + 64, 24 + 64]], atol=1e-4)
    assert np.allclose(points, 24, atol=1e-4)


# --- poses ----------------------------------------------------------------------------------------


def limb_maps(*ways: tuple[int, tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """Part affinity fields [64, 64, 38] that hold a unit vector along each way (field, start, end)."""
    maps = np.zeros((64, 64, 38))
    for place, start, end in ways:
        way = np.subtract(end, start) / np.hypot(*np.subtract(end, start))
        maps[:, :, place : place + 2] += way
    return maps


def test_joints_are_put_together_where_the_limb_maps_lead() -> None:
    neck, shoulder, elbow, wrist, stray = (30, 10), (20, 10), (18, 25), (18, 40), (60, 60)
    candidates: list[list[Joint]] = [[] for _ in range(18)]
    for number, (part, place) in enumerate(((1, neck), (2, shoulder), (3, elbow), (4, wrist), (4, stray))):
        candidates[part].append(Joint(*place, 0.9, number))
    maps = limb_maps((12, neck, shoulder), (14, shoulder, elbow), (16, elbow, wrist))
    (body,) = grouped(candidates, maps)
    assert [body[part][:2] for part in (1, 2, 3, 4) if body[part]] == [neck, shoulder, elbow, wrist]
    assert sum(joint is not None for joint in body) == 4
    assert grouped(candidates, np.zeros((64, 64, 38))) == []


def test_a_person_is_drawn_with_what_is_asked_for() -> None:
    body = [(0.5, 0.2), (0.5, 0.5), *[None] * 16]
    hand = [(0.1 + 0.03 * joint, 0.8) for joint in range(21)]
    face = [(0.9, 0.9)] * 70
    person = Person(body, hand, None, face)
    whole = draw_people([person], (100, 100), body=True, hand=True, face=True)
    assert tuple(whole[20, 50]) == (255, 0, 0) and tuple(whole[50, 50]) == (255, 85, 0)
    assert tuple(whole[80, 10]) == (0, 0, 255) and tuple(whole[90, 90]) == (255, 255, 255)
    plain = draw_people([person], (100, 100))
    assert plain[35, 50].any() and not plain[80].any() and not plain[90].any()


def test_where_nobody_is_seen_nothing_is_drawn(settings: Settings) -> None:
    write(pose.BODY_FILE, settings, lambda own: [own.update({k: own[k] * 0}) for k in own])
    assert not run("openpose", settings, picture()).any()


def test_edges_follow_the_picture_when_they_are_not_put_into_levels(settings: Settings) -> None:
    write("TEED/7_model.pth", settings)
    made = detect(MODULES["softedge_teed"], picture(), Detection(SIDE, a=0), settings)
    assert len(np.unique(made)) > 2


def whole_body(monkeypatch: pytest.MonkeyPatch, settings: Settings, *, classes: list[float]) -> Pixels:
    """What is drawn where a detector sees one thing in the middle, and its points lie on a diagonal."""
    seen = np.zeros((1, 8400, 7), np.float32)
    cell = 6400 + 1600 + 10 * 20 + 10  # the stride of 32 px, row 10 and column 10: (320, 320) px of 640
    seen[0, cell] = [0, 0, np.log(10), np.log(10), 1.0, *classes]
    across, down = np.zeros((1, 133, 576), np.float32), np.zeros((1, 133, 768), np.float32)
    for point in range(133):
        across[0, point, 4 * point + 2], down[0, point, 5 * point + 2] = 0.9, 0.8
    networks = {"yolox_l": lambda values: [seen], "dw-ll_ucoco_384": lambda values: [across, down]}
    monkeypatch.setattr(dwpose, "session", lambda path: networks[path.stem])
    for file in NETWORK_FILES["dw_openpose_full"]:
        path = settings.folders.annotators[0] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return run("dw_openpose_full", settings, picture(128, 128), 128)


def test_dwpose_draws_the_points_of_who_the_detector_sees(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    drawn = whole_body(monkeypatch, settings, classes=[0.9, 0.0])
    # The box is 64 px around (64, 64); a quarter more and the network's form make 80 x 106.7 px of it.
    left, top = 64 - 40, 64 - 160 / 3
    for point, colour in ((23 + 60, (255, 255, 255)), (132, (0, 0, 255))):
        x, y = left + (4 * point + 2) / 576 * 80, top + (5 * point + 2) / 768 * 320 / 3
        assert tuple(drawn[int(y), int(x)]) == colour


def test_dwpose_looks_at_the_whole_picture_where_only_other_things_are(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    person = whole_body(monkeypatch, settings, classes=[0.9, 0.0])
    thing = whole_body(monkeypatch, settings, classes=[0.0, 0.9])
    assert thing.any() and (thing != person).any()
    assert not whole_body(monkeypatch, settings, classes=[0.05, 0.05]).any()


def animals(monkeypatch: pytest.MonkeyPatch, settings: Settings, kind: int) -> Detected:
    """What is drawn where a detector sees one thing of a kind in the middle, its joints on a diagonal."""
    seen = np.zeros((1, 8400, 85), np.float32)
    cell = 6400 + 1600 + 10 * 20 + 10
    seen[0, cell, :5] = [0, 0, np.log(10), np.log(10), 1.0]
    seen[0, cell, 5 + kind] = 0.9
    across = np.zeros((1, 17, 512), np.float32)
    for joint in range(17):
        across[0, joint, 30 * joint] = 0.01  # however unsure
    networks = [lambda values: [seen], lambda values: [across, across]]
    files = NETWORK_FILES["animal_openpose"]
    monkeypatch.setattr(animal_pose, "session", lambda path: networks[files.index(f"openpose/{path.name}")])
    for file in files:
        path = settings.folders.annotators[0] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return detected(MODULES["animal_openpose"], picture(128, 128), Detection(128), settings)


def test_an_animals_joints_are_drawn_and_told_in_px(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    found = animals(monkeypatch, settings, kind=16)
    assert found.pose is not None and found.pose["people"] == []
    (told,) = found.pose["animals"]
    joints = np.reshape(told, (17, 3))[:, :2]
    # The box is 64 px around (64, 64), a quarter more is looked at, in half px of 256.
    assert np.allclose(joints, [[64 - 40 + 30 * joint / 512 * 80] * 2 for joint in range(17)])
    # From the nose to the neck, and from a hip to its knee.
    for one, two, colour in ((2, 3, (100, 50, 255)), (11, 12, (255, 255, 0))):
        x, y = (joints[one] + joints[two]) / 2
        assert tuple(found.map[int(y), int(x)]) == colour


def test_what_is_no_animal_is_not_drawn(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    assert not animals(monkeypatch, settings, kind=0).map.any()
    assert not animals(monkeypatch, settings, kind=24).map.any()


def test_a_file_that_is_no_onnx_network_is_named(settings: Settings) -> None:
    for file in NETWORK_FILES["dw_openpose_full"]:
        path = settings.folders.annotators[0] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointBroken, match=r"yolox_l\.onnx is not an ONNX network"):
        run("dw_openpose_full", settings, picture())
