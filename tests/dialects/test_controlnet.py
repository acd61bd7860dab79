"""The ControlNet extension's routes: what is listed, and detection as a job like any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sd_cloud.engines.base import Control, Report
from sd_cloud.job import Job, Outcome
from sd_cloud.store.usage import as_csv
from tests.dialects.sdapi_world import Native, PaintEngineWithNames, base64_png, native, picture_in
from tests.e2e.world import base64_of, mask_of, picture_server, png_of

pytest.importorskip("cv2", reason="the embedded engine needs the current stack")

PICTURE = base64_of(png_of(64, 96))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Native]:
    """The standalone app whose engine looks at pictures in this process, and paints all others."""
    from sd_cloud.engines.diffusion.detection import run_detection

    paint = PaintEngineWithNames.run

    async def run(engine: PaintEngineWithNames, job: Job, report: Report) -> Outcome:
        painted = await paint(engine, job, report)
        if job.kind != "detect":
            return painted
        return await asyncio.to_thread(run_detection, job, report, Control(), settings=world.settings)

    monkeypatch.setattr(PaintEngineWithNames, "run", run)
    async with native(tmp_path, image_link_allow=("127.0.0.1",)) as world:
        yield world


async def detect(world: Native, **body: Any) -> Any:
    sent = {"controlnet_module": "canny", "controlnet_input_images": [PICTURE], **body}
    return await world.client.post("/controlnet/detect", json=sent)


async def test_what_there_is_is_listed(world: Native) -> None:
    assert (await world.client.get("/controlnet/version")).json() == {"version": 3}
    assert (await world.client.get("/controlnet/model_list")).json() == {"model_list": []}
    assert "canny" in (await world.client.get("/controlnet/module_list")).json()["module_list"]


async def test_each_picture_is_answered_with_its_map(world: Native) -> None:
    sent = [PICTURE, "data:image/png;base64," + base64_png(32)]
    answer = (await detect(world, controlnet_input_images=sent, controlnet_processor_res=64)).json()
    assert set(answer) == {"info", "images"} and answer["info"] == "Success"
    first, second = (picture_in(one) for one in answer["images"])
    assert first.size == (64, 96) and first.getextrema() == ((0, 255),) * 3
    assert second.size == (64, 64) and second.getextrema() == ((0, 0),) * 3


async def test_a_picture_may_be_a_link(world: Native) -> None:
    with picture_server() as links:
        linked = await detect(world, controlnet_input_images=[links + "/boy.png"])
        missing = await detect(world, controlnet_input_images=[PICTURE, links + "/nobody.png"])
    sent = await detect(world, controlnet_input_images=[base64_of(png_of())])
    assert linked.json() == sent.json()
    assert missing.status_code == 424 and missing.json()["detail"].startswith("controlnet_input_images[1]: ")


async def test_a_mask_shows_as_half_transparent_where_a_preprocessor_takes_one(world: Native) -> None:
    images, masks = [base64_of(png_of())], [base64_of(mask_of())]
    answer = await detect(
        world, controlnet_module="inpaint_only", controlnet_input_images=images, controlnet_masks=masks
    )
    shown = picture_in(answer.json()["images"][0])
    assert shown.mode == "RGBA" and shown.getpixel((10, 10))[3] == 255 and shown.getpixel((80, 80))[3] == 128
    with_mask = await detect(world, controlnet_masks=masks)
    assert with_mask.json() == (await detect(world)).json(), "canny takes no mask: it is ignored"


async def test_it_is_a_task_of_its_caller_that_saves_and_counts_no_picture(
    world: Native, tmp_path: Path
) -> None:
    await detect(world)
    [task] = (await world.client.get("/sd-cloud/v1/tasks")).json()["tasks"]
    assert (task["kind"], task["state"], task["owner"]) == ("detect", "succeeded", "local")
    assert [one["role"] for one in task["pictures"]] == ["control_map"]
    assert not list((tmp_path / "outputs").rglob("*.png"))
    rows = "".join([part async for part in as_csv(world.service.store.database)])
    assert ",detect,,succeeded,0," in rows


async def test_it_waits_its_turn_and_can_be_cancelled(world: Native) -> None:
    async def tasks(count: int) -> list[dict[str, Any]]:
        while len(told := (await world.client.get("/sd-cloud/v1/tasks")).json()["tasks"]) < count:
            await asyncio.sleep(0.01)
        return list(told)

    world.engine.step_seconds = 0.1
    first = asyncio.create_task(world.post("txt2img", {"steps": 1000, "width": 8, "height": 8}))
    while (running := (await tasks(1))[0])["state"] != "running":
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(detect(world))
    [one, _] = await tasks(2)
    assert (one["kind"], one["state"]) == ("detect", "pending")
    for task in (one, running):
        cancelled = await world.client.post(f"/sd-cloud/v1/tasks/{task['id']}/cancel")
        assert cancelled.json() == {"cancelled": True}
    answer = await waiting
    assert answer.status_code == 409 and answer.json()["error"] == "cancelled"
    await first


async def test_as_a_task_of_the_task_api_it_answers_the_same(world: Native) -> None:
    body = {"controlnet_module": "canny", "controlnet_input_images": [PICTURE]}
    asked = await world.client.post("/controlnet/detect", json=body, headers={"Task-Flag": "true"})
    assert asked.headers["taskId"] and asked.json() == (await detect(world)).json()


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"controlnet_module": "no such"}, 422, "controlnet_module: Module not available"),
        ({"controlnet_module": 3}, 422, "controlnet_module: Module not available"),
        ({"controlnet_module": "clip_vision"}, 422, "controlnet_module: Module not supported: "),
        ({"controlnet_module": "ip-adapter_clip_h"}, 422, "controlnet_module: Module not supported: "),
        ({"controlnet_input_images": []}, 422, "controlnet_input_images: No image selected"),
        ({"controlnet_input_images": "x"}, 422, "controlnet_input_images: expected a list of pictures"),
        ({"controlnet_input_images": ["x"] * 65}, 422, "controlnet_input_images: more than 64"),
        ({"controlnet_threshold_a": "1"}, 422, "controlnet_threshold_a: '1' is not a number"),
        (
            {"controlnet_module": "inpaint"},
            422,
            "controlnet_masks: Preprocessor inpaint requires `controlnet_masks` param",
        ),
        ({"controlnet_module": "hed"}, 501, "controlnet_module: the preprocessor 'hed'"),
    ],
)
async def test_what_is_refused_is_refused_before_it_waits(
    world: Native, change: dict[str, Any], status: int, said: str
) -> None:
    answer = await detect(world, **change)
    assert answer.status_code == status and answer.json()["detail"].startswith(said), answer.text
    assert (await world.client.get("/sd-cloud/v1/tasks")).json()["tasks"] == []


async def test_what_is_no_picture_is_named(world: Native) -> None:
    answer = await detect(world, controlnet_input_images=[PICTURE, "x"])
    assert answer.status_code == 422 and answer.json()["detail"].startswith("controlnet_input_images[1]: ")
    assert world.engine.started == []


def person(**more: Any) -> dict[str, Any]:
    """One who stands: shares of the canvas, three numbers a point."""
    body = [number for place in range(18) for number in (0.1 + place / 25, 0.9 - place / 25, 1.0)]
    return {"people": [{"pose_keypoints_2d": body, **more}], "canvas_width": 96, "canvas_height": 64}


async def render(world: Native, poses: Any) -> Any:
    return await world.client.post("/controlnet/render_openpose_json", json=poses)


async def test_people_written_down_are_drawn_again_with_hands_and_faces(world: Native) -> None:
    hand = [number for place in range(21) for number in (place / 21, 0.5, 1.0)]
    unseen = [0.0] * 63
    poses = [person(), person(hand_left_keypoints_2d=hand), person(hand_left_keypoints_2d=unseen)]
    answer = (await render(world, [*poses, {**person(), "people": []}])).json()
    assert list(answer) == ["images", "info"] and answer["info"] == "Success"
    plain, with_hand, with_unseen, nobody = (picture_in(one) for one in answer["images"])
    assert plain.size == (96, 64)
    assert plain.tobytes() != with_hand.tobytes() and plain.tobytes() == with_unseen.tobytes()
    assert nobody.getextrema() == ((0, 0),) * 3
    assert (await render(world, [])).json() == {"info": "No pose data detected."}


@pytest.mark.parametrize(
    ("pose", "said"),
    [
        ({**person(), "people": None}, "pose_data[1].people"),
        ({**person(), "people": [{}]}, "pose_data[1].people[0].pose_keypoints_2d"),
        (person(pose_keypoints_2d=[0.5, 0.5, 1.0]), "18 to 1000 points"),
        (person(face_keypoints_2d=[0.5, "x", 1.0]), "'x' is no number"),
        (person(face_keypoints_2d=[0.5, 1e30, 1.0]), "1e+30 is no number"),
        ({**person(), "canvas_width": 0}, "pose_data[1].canvas_width"),
        ({**person(), "canvas_width": 10**6, "canvas_height": 10**6}, "pixels are more than"),
    ],
)
async def test_a_pose_that_cannot_be_drawn_is_refused_by_name(world: Native, pose: Any, said: str) -> None:
    answer = await render(world, [person(), pose])
    assert answer.status_code == 422 and said in answer.json()["detail"]
