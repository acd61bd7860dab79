"""Every picture field of a native payload, from every kind of place."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sd_cloud.errors import BadRequest, InputRefused, InputUnreachable, ServiceError
from sd_cloud.inputs import Inputs
from sd_cloud.inputs import resolve as room
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.job import OPERATOR, Job, Kind
from sd_cloud.settings import OssSettings, Settings, settings_below
from tests.inputs.pictures import TYPES, as_bytes, as_text
from tests.inputs.servers import Conversation, Server, serving
from tests.outputs.oss_server import KEY_ID, KEY_SECRET, serving_oss

PICTURE = as_bytes()
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = settings_below(tmp_path / "data")
    made.outputs_dir.mkdir(parents=True)
    return made


async def by_name(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"] if host == "pictures.test" else ["10.0.0.1"]


def inputs(settings: Settings) -> Inputs:
    return Inputs(settings, policy=AddressPolicy.listing(["pictures.test"], resolve=by_name))


async def resolved(
    settings: Settings, payload: dict[str, Any], kind: Kind = "img2img", owner: str = OPERATOR
) -> dict[str, Any]:
    job = Job(kind, payload, owner=owner)
    made = await inputs(settings).resolve(job)
    assert made.id == job.id
    json.dumps(made.payload)
    return dict(made.payload)


async def refusal(settings: Settings, payload: dict[str, Any], kind: Kind = "img2img") -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await resolved(settings, payload, kind)
    return caught.value


async def test_the_pictures_and_masks_of_a_detection_are_taken(settings: Settings) -> None:
    payload = {"controlnet_input_images": ["data:image/png;base64," + TEXT], "controlnet_masks": [TEXT]}
    made = await resolved(settings, payload, "detect")
    assert made == {"controlnet_input_images": [TEXT], "controlnet_masks": [TEXT]}
    refused = await refusal(settings, {"controlnet_input_images": [TEXT, "x"]}, "detect")
    assert refused.field == "controlnet_input_images[1]"


async def with_picture(conversation: Conversation) -> None:
    await conversation.answer(body=PICTURE)


def controlnet(*units: Any, name: str = "controlnet") -> dict[str, Any]:
    return {"alwayson_scripts": {name: {"args": list(units)}}}


def unit_of(payload: dict[str, Any], name: str = "controlnet") -> dict[str, Any]:
    unit: dict[str, Any] = payload["alwayson_scripts"][name]["args"][0]
    return unit


@pytest.mark.parametrize("name", ["mask", "latent_mask", "firstpass_image"])
async def test_single_pictures_are_resolved(settings: Settings, name: str) -> None:
    made = await resolved(settings, {name: f"data:image/png;base64,{TEXT}", "prompt": "x"})
    assert made == {name: TEXT, "prompt": "x"}


async def test_every_type_comes_through_as_its_original_bytes(settings: Settings) -> None:
    texts = [as_text(kind) for kind in TYPES]
    assert (await resolved(settings, {"init_images": texts}))["init_images"] == texts


async def test_extras_take_one_picture_or_a_list(settings: Settings) -> None:
    assert await resolved(settings, {"image": TEXT}, "extras") == {"image": TEXT}
    batch = {"imageList": [{"data": f"data:image/png;base64,{TEXT}", "name": "a.png"}]}
    assert await resolved(settings, batch, "extras") == {"imageList": [{"data": TEXT, "name": "a.png"}]}


async def test_a_payload_without_pictures_is_left_as_it_is(settings: Settings) -> None:
    payload = {"prompt": "a cat", "mask": None, "alwayson_scripts": {}, "script_args": [1, "x"]}
    assert await resolved(settings, payload, "txt2img") == payload
    assert await resolved(settings, {"anything": "http://10.0.0.1/"}, "call") == {
        "anything": "http://10.0.0.1/"
    }


async def test_links_are_fetched_in_every_field(settings: Settings) -> None:
    async with serving(with_picture) as server:
        link = server.url()
        made = await resolved(
            settings,
            {
                "init_images": [link, TEXT],
                "mask": link,
                **controlnet({"image": link, "mask": {"image": link, "mask": link}}),
            },
        )
        assert made["init_images"] == [TEXT, TEXT] and made["mask"] == TEXT
        assert unit_of(made) == {"image": TEXT, "mask": {"image": TEXT, "mask": TEXT}}
        assert len(server.seen) == 5


@pytest.mark.parametrize(
    "image",
    [
        TEXT,
        {"image": TEXT, "mask": TEXT},
        {"image": TEXT, "mask": None},
        [TEXT, TEXT],
        [{"image": TEXT, "mask": TEXT}, {"image": TEXT}],
        None,
        "",
    ],
)
@pytest.mark.parametrize("name", ["image", "input_image", "mask", "mask_image"])
async def test_a_units_picture_keeps_its_form(settings: Settings, name: str, image: Any) -> None:
    given = json.loads(json.dumps(image).replace(TEXT, f"data:image/png;base64,{TEXT}"))
    made = await resolved(settings, controlnet({name: given, "model": "canny"}), "txt2img")
    assert unit_of(made) == {name: image, "model": "canny"}


@pytest.mark.parametrize("name", ["controlnet", "ControlNet", "CONTROLNET"])
async def test_a_units_links_become_its_picture_and_mask(settings: Settings, name: str) -> None:
    async with serving(with_picture) as server:
        unit = {"image_link": server.url(), "mask_link": server.url(), "mask_image": "old", "image": ""}
        made = await resolved(settings, controlnet(unit, name=name), "txt2img")
        assert unit_of(made, name) == {"image": TEXT, "mask": TEXT}


async def test_a_link_goes_before_the_picture_and_keeps_the_mask_beside_it(settings: Settings) -> None:
    async with serving(with_picture) as server:
        unit = {"image_link": server.url(), "image": {"image": "old", "mask": TEXT}}
        made = await resolved(settings, controlnet(unit), "txt2img")
        assert unit_of(made) == {"image": {"image": TEXT, "mask": TEXT}}
        made = await resolved(settings, controlnet({"image_link": server.url(), "input_image": "old"}))
        assert unit_of(made) == {"image": TEXT}
        made = await resolved(settings, controlnet({"image_link": "", "mask_link": None, "image": TEXT}))
        assert unit_of(made) == {"image": TEXT}


async def test_a_unit_that_is_switched_off_costs_nothing(settings: Settings) -> None:
    unit = {"enabled": False, "image_link": "http://10.0.0.1/", "image": "not read"}
    made = await resolved(settings, controlnet(unit, "positional", 3, None), "txt2img")
    assert "image_link" not in unit_of(made)


async def test_a_units_batch_is_resolved(settings: Settings) -> None:
    made = await resolved(settings, controlnet({"batch_images": [TEXT, f"data:;base64,{TEXT}"]}))
    assert unit_of(made) == {"batch_images": [TEXT, TEXT]}


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"init_images": ["http://elsewhere.test/"]}, "init_images[0]"),
        ({"init_images": [TEXT, "not base64"]}, "init_images[1]"),
        ({"mask": "http://10.0.0.1/"}, "mask"),
        (controlnet({"image_link": "http://10.0.0.1/"}), "alwayson_scripts.controlnet.args[0].image_link"),
        (
            controlnet({"mask_link": "http://169.254.169.254/"}),
            "alwayson_scripts.controlnet.args[0].mask_link",
        ),
        (
            controlnet({"image_link": "http://10.0.0.1/", "image": {"mask": TEXT}}),
            "alwayson_scripts.controlnet.args[0].image_link",
        ),
        (
            controlnet({}, {"image": [{"image": TEXT, "mask": "!"}]}),
            "alwayson_scripts.controlnet.args[1].image[0].mask",
        ),
        (
            controlnet({"effective_region_mask": "!"}),
            "alwayson_scripts.controlnet.args[0].effective_region_mask",
        ),
    ],
)
async def test_a_refusal_names_the_field(settings: Settings, payload: dict[str, Any], field: str) -> None:
    error = await refusal(settings, payload)
    assert isinstance(error, InputRefused) and error.field == field


@pytest.mark.parametrize(
    ("payload", "kind", "field"),
    [
        ({"init_images": TEXT}, "img2img", "init_images"),
        ({"init_images": [None]}, "img2img", "init_images[0]"),
        ({"init_images": [""]}, "img2img", "init_images[0]"),
        ({"init_images": [{"image": TEXT}]}, "img2img", "init_images[0]"),
        ({"mask": 5}, "img2img", "mask"),
        ({"image": ""}, "extras", "image"),
        ({}, "extras", "image"),
        ({"imageList": {}}, "extras", "imageList"),
        ({"imageList": [TEXT]}, "extras", "imageList[0]"),
        ({"imageList": [{"name": "a"}]}, "extras", "imageList[0].data"),
        (controlnet({"image": 3}), "txt2img", "alwayson_scripts.controlnet.args[0].image"),
        (controlnet({"image_link": 3}), "txt2img", "alwayson_scripts.controlnet.args[0].image_link"),
    ],
)
async def test_a_field_of_another_shape_is_a_bad_request(
    settings: Settings, payload: dict[str, Any], kind: Kind, field: str
) -> None:
    error = await refusal(settings, payload, kind)
    assert isinstance(error, BadRequest) and error.field == field


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not base64", "neither base64"),
        (base64.b64encode(b"hello world").decode(), "not a picture"),
        (base64.b64encode(PICTURE[:-40]).decode(), "cut short"),
        ("data:image/png,abc", "in base64"),
        ("ftp://pictures.test/a.png", "ftp: is not taken"),
        ("file:///etc/passwd", "file: is not taken"),
        ("C:\\a.png", "c: is not taken"),
        ("/etc/passwd", "outside the output folders"),
        ("../models/a.png", "no request may name it"),
        ("../x.png", "outside the output folders"),
        ("missing.png", "is not a file"),
        (".", "is not a file"),
        ("oss://bucket/a.png", "--oss-allow"),
    ],
)
async def test_each_refusal_says_the_rule(settings: Settings, text: str, says: str) -> None:
    error = await refusal(settings, {"init_images": [text]})
    assert says in str(error) and error.field == "init_images[0]"


async def test_a_saved_picture_can_be_named_by_its_path(settings: Settings, tmp_path: Path) -> None:
    file = settings.outputs_dir / "txt2img-images" / "a.png"
    file.parent.mkdir()
    file.write_bytes(PICTURE)
    for path in (str(file), "txt2img-images/a.png", "./txt2img-images/../txt2img-images/a.png"):
        assert (await resolved(settings, {"init_images": [path]}))["init_images"] == [TEXT]
    (settings.outputs_dir / "link.png").symlink_to(file)
    assert (await resolved(settings, {"mask": "link.png"}))["mask"] == TEXT
    outside = tmp_path / "secret.png"
    outside.write_bytes(PICTURE)
    (settings.outputs_dir / "out.png").symlink_to(outside)
    assert "outside" in str(await refusal(settings, {"mask": "out.png"}))


async def test_another_owners_task_picture_is_not_read(settings: Settings) -> None:
    file = settings.outputs_dir / "images" / "alice" / "t_1.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(PICTURE)
    assert (await resolved(settings, {"mask": "images/alice/t_1.png"}, owner="alice"))["mask"] == TEXT
    with pytest.raises(InputRefused, match="another user"):
        await resolved(settings, {"mask": "images/alice/t_1.png"}, owner="bob")


async def test_a_user_reads_pictures_of_their_own_folder_only(settings: Settings) -> None:
    for place in ("txt2img-images/a.png", "images/bob/b.png"):
        file = settings.outputs_dir / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PICTURE)
    (settings.outputs_dir / "images" / "bob" / "link.png").symlink_to(
        settings.outputs_dir / "txt2img-images" / "a.png"
    )
    assert (await resolved(settings, {"mask": "images/bob/b.png"}, owner="bob"))["mask"] == TEXT
    for path in ("txt2img-images/a.png", "images/bob/../../txt2img-images/a.png", "images/bob/link.png"):
        with pytest.raises(InputRefused, match="not among your own pictures"):
            await resolved(settings, {"mask": path}, owner="bob")
    assert (await resolved(settings, {"mask": "txt2img-images/a.png"}, owner=OPERATOR))["mask"] == TEXT


async def test_the_limits_hold_for_files_links_and_base64_alike(settings: Settings) -> None:
    (settings.outputs_dir / "a.png").write_bytes(PICTURE)
    tight = replace(settings, fetch=replace(settings.fetch, limit_bytes=len(PICTURE) - 1))
    async with serving(with_picture) as server:
        for given in ("a.png", server.url(), TEXT):
            error = await refusal(tight, {"mask": given})
            assert isinstance(error, InputRefused) and "limit" in str(error)


async def test_what_a_link_leads_to_is_checked_as_a_picture(settings: Settings) -> None:
    async with serving(lambda conversation: conversation.answer(body=b"<html>")) as server:
        assert "not a picture" in str(await refusal(settings, {"mask": server.url()}))
    async with serving(lambda conversation: conversation.answer(404)) as server:
        assert isinstance(await refusal(settings, {"mask": server.url()}), InputUnreachable)


async def test_the_pictures_of_one_job_have_a_limit_together(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LIMIT_JOB_BYTES", 3 * len(PICTURE) + 10)
    assert await resolved(settings, {"init_images": [TEXT] * 3})
    assert "together" in str(await refusal(settings, {"init_images": [TEXT] * 4}))
    async with serving(with_picture) as server:
        assert "together" in str(await refusal(settings, {"init_images": [server.url()] * 4}))


async def test_after_the_first_refusal_nothing_more_is_fetched(settings: Settings) -> None:
    async def never(conversation: Conversation) -> None:
        await asyncio.Event().wait()

    async with serving(never) as server:
        links = [server.url(path=f"/{n}") for n in range(20)]
        error = await refusal(settings, {"init_images": [*links[:2], "not base64", *links]})
        assert error.field == "init_images[2]"
        assert len(server.seen) <= room.FETCHES_AT_ONCE
    assert [t for t in asyncio.all_tasks() if "fill" in repr(t.get_coro())] == []


async def test_links_of_one_job_are_fetched_side_by_side(settings: Settings) -> None:
    together = 0
    most = 0
    two = asyncio.Event()

    async def counted(conversation: Conversation) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        if together > 1:
            two.set()
        await two.wait()
        together -= 1
        await conversation.answer(body=PICTURE)

    async with serving(counted) as server:
        await resolved(settings, {"init_images": [server.url()] * 12})
    assert 2 <= most <= room.FETCHES_AT_ONCE


async def test_pictures_are_read_from_a_listed_bucket(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", KEY_SECRET)
    with serving_oss() as oss:
        oss.objects["bucket/given/a.png"] = PICTURE
        with_oss = replace(settings, oss=OssSettings(allow=("bucket/given",), endpoint=oss.endpoint))
        assert (await resolved(with_oss, {"mask": "oss://bucket/given/a.png"}))["mask"] == TEXT
        assert isinstance(await refusal(with_oss, {"mask": "oss://bucket/given/b.png"}), InputUnreachable)
        assert isinstance(await refusal(with_oss, {"mask": "oss://bucket/other/a.png"}), InputRefused)
        assert oss.refused == []


async def test_the_guides_controlnet_request_is_resolved(settings: Settings) -> None:
    async with serving(with_picture) as server:
        unit = {
            "image_link": link_of(server),
            "enabled": True,
            "module": "canny",
            "model": "control_v11p_sd15_canny",
            "resize_mode": "Crop and Resize",
            "input_mode": "simple",
            "batch_images": "",
            "output_dir": "",
            "loopback": False,
        }
        made = unit_of(await resolved(settings, controlnet(dict(unit)), "txt2img"))
    unit.pop("image_link")
    assert made == {**unit, "image": TEXT}


def link_of(server: Server) -> str:
    return server.url(path="/pixabay_images/00008b87bf3ff6742b8cf81c358b9dbc.jpg")
