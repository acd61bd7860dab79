"""Jobs of kind ``detect``: a map for each picture, the people in it, and stopping in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.controlnet.api import checked_detection
from sd_cloud.engines.diffusion.detection import run_detection, shown
from sd_cloud.engines.diffusion.engine import create
from sd_cloud.engines.diffusion.preprocess import networks
from sd_cloud.engines.diffusion.preprocess.detect import Detected
from sd_cloud.engines.diffusion.preprocess.pose_drawing import Person, people_json
from sd_cloud.engines.diffusion.preprocess.table import MODULES, NETWORK_FILES
from sd_cloud.errors import Cancelled
from sd_cloud.job import Job, Progress
from sd_cloud.settings import Settings, settings_below
from tests.dialects.sdapi_world import base64_png


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path)


def job(settings: Settings, **body: Any) -> Job:
    pictures = [base64_png(64), base64_png(32), base64_png(8)]
    sent = {"controlnet_module": "canny", "controlnet_input_images": pictures, **body}
    return Job("detect", checked_detection(sent, settings))


def test_the_engine_makes_a_map_of_each_picture_and_tells_how_far_it_is(settings: Settings) -> None:
    heard: list[Progress] = []
    outcome = create(settings).run(job(settings, controlnet_processor_res=64), heard.append, Control())
    assert [(one.role, one.image.size) for one in outcome.pictures if one.image] == [
        ("control_map", (64, 64))
    ] * 3
    assert [one.fraction for one in heard] == [0, 1 / 3, 2 / 3] and outcome.info == {"poses": []}


def test_cancelling_drops_and_interrupting_keeps(settings: Settings) -> None:
    control = Control()
    asked = iter(["go", "go", "interrupt"])
    outcome = run_detection(job(settings), lambda _: control.ask(next(asked)), control, settings=settings)  # type: ignore[arg-type]
    assert outcome.interrupted and len(outcome.pictures) == 2
    control.ask("cancel")
    with pytest.raises(Cancelled):
        run_detection(job(settings), lambda _: None, control, settings=settings)


def test_the_people_of_a_pose_come_with_its_map(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NETWORK_FILES["openpose"]:
        path = settings.folders.annotators[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    body = [(0.25, 0.5), None, *[(0.5, 0.75)] * 16]

    def seen(bench: object, image: np.ndarray, detection: object) -> Detected:
        return Detected(image, people_json([Person(body)], (image.shape[0], image.shape[1])))

    monkeypatch.setattr(networks, "NETWORKS", {"openpose": seen})
    outcome = create(settings).run(
        job(settings, controlnet_module="openpose", controlnet_processor_res=96), lambda _: None, Control()
    )
    first, *_ = outcome.info["poses"]
    assert len(outcome.info["poses"]) == 3
    assert first == {
        "people": [
            {
                "pose_keypoints_2d": [0.25, 0.5, 1.0, 0.0, 0.0, 0.0, *[0.5, 0.75, 1.0] * 16],
                "face_keypoints_2d": None,
                "hand_left_keypoints_2d": None,
                "hand_right_keypoints_2d": None,
            }
        ],
        "animals": [],
        "canvas_height": 128,
        "canvas_width": 128,
    }


def test_a_network_that_paints_what_a_mask_covers_is_shown_without_the_mask() -> None:
    found = np.full((4, 4, 4), 200, np.uint8)
    assert (shown(MODULES["inpaint_only+lama"], found) == found[:, :, :3]).all()
    assert (shown(MODULES["inpaint_only"], found)[:, :, 3] == 155).all()
