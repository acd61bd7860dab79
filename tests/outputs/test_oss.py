"""OSS through oss2: only what the operator lists, signed, and honest about what was not taken."""

from __future__ import annotations

import io
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sd_cloud.errors import InputRefused, InputUnreachable, NotImplementedHere, SavingFailed
from sd_cloud.job import Target
from sd_cloud.oss import Oss, OssAddress, region_of
from sd_cloud.outputs import Outputs
from sd_cloud.outputs.png import read_infotext
from sd_cloud.settings import OssSettings, Settings
from tests.outputs.oss_server import KEY_ID, KEY_SECRET, FakeOss, serving_oss
from tests.outputs.pictures import INFOTEXT, MOMENT, files_below, job, outcome, picture, settings_in

TARGET = Target("eas", "oss://examplebucket/data-oss/outputs")


@pytest.fixture
def oss(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOss]:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", KEY_SECRET)
    monkeypatch.delenv("OSS_SESSION_TOKEN", raising=False)
    with serving_oss() as fake:
        yield fake


@pytest.fixture
def settings(tmp_path: Path, oss: FakeOss) -> Settings:
    allow = ("examplebucket/data-oss", "whole-bucket")
    return settings_in(tmp_path, oss=OssSettings(allow=allow, endpoint=oss.endpoint))


def outputs(settings: Settings) -> Outputs:
    return Outputs(settings, now=lambda: MOMENT)


def fetched(link: str) -> bytes:
    with urllib.request.urlopen(link) as answer:
        body: bytes = answer.read()
        return body


async def test_pictures_are_uploaded_under_the_guides_names(
    settings: Settings, oss: FakeOss, tmp_path: Path
) -> None:
    saved = await outputs(settings).save(
        job(TARGET), outcome(picture(role="grid", seed=None), picture(seed=5))
    )
    grid, one = saved.pictures
    names = r"oss://examplebucket/data-oss/outputs/txt2img-(grids/2024-06-26/grid-|images/2024-06-26/).*\.png"
    assert re.fullmatch(names, str(grid.path)) and re.fullmatch(names, str(one.path))
    assert sorted(f"oss://{name}" for name in oss.objects) == sorted([str(grid.path), str(one.path)])
    assert one.oss_address == one.path
    data = oss.objects[str(one.path)[len("oss://") :]]
    with Image.open(io.BytesIO(data)) as image:
        assert read_infotext(image)[0] == INFOTEXT
    assert set(oss.types.values()) == {"image/png"}
    assert oss.refused == [] and files_below(tmp_path) == []


async def test_the_link_is_signed_by_oss_and_needs_no_credentials(settings: Settings, oss: FakeOss) -> None:
    saved = (await outputs(settings).save(job(TARGET), outcome())).pictures[0]
    assert fetched(str(saved.link)) == oss.objects[str(saved.path)[len("oss://") :]]
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetched(str(saved.link).replace("Expires=", "Expires=9"))
    assert caught.value.code == 403
    caught.value.close()


async def test_a_store_that_fails_midway_costs_only_the_pictures_after_it(
    settings: Settings, oss: FakeOss
) -> None:
    oss.fail_from = 3
    saved = await outputs(settings).save(job(TARGET), outcome(*[picture(seed=n) for n in range(4)]))
    assert [bool(p.path) for p in saved.pictures] == [True, True, False, False]
    assert [bool(p.link) for p in saved.pictures] == [True, True, False, False]
    assert len(oss.objects) == 2
    for failed in saved.pictures[2:]:
        assert failed.error is not None and "ServiceUnavailable: try again later" in failed.error
        assert failed.image is not None


async def test_a_store_that_takes_nothing_is_saving_failed(settings: Settings, oss: FakeOss) -> None:
    oss.fail_from = 1
    with pytest.raises(SavingFailed, match="ServiceUnavailable") as caught:
        await outputs(settings).save(job(TARGET), outcome(picture(), picture()))
    assert caught.value.field == "save_dir"


async def test_a_wrong_secret_is_refused_by_the_store_and_said_so(
    settings: Settings, oss: FakeOss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "another")
    with pytest.raises(SavingFailed, match="SignatureDoesNotMatch"):
        await outputs(settings).save(job(TARGET), outcome())
    assert len(oss.refused) == 1 and oss.objects == {}


async def test_missing_credentials_are_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OSS_ACCESS_KEY_ID")
    with pytest.raises(SavingFailed, match="Access key id"):
        await outputs(settings).save(job(TARGET), outcome())


async def test_a_missing_endpoint_is_said(settings: Settings) -> None:
    bare = replace(settings, oss=replace(settings.oss, endpoint=None))
    with pytest.raises(NotImplementedHere, match="--oss-endpoint"):
        await outputs(bare).save(job(TARGET), outcome())


async def test_a_store_nobody_reaches_is_saving_failed(settings: Settings) -> None:
    gone = replace(settings, oss=replace(settings.oss, endpoint="http://127.0.0.1:9"))
    with pytest.raises(SavingFailed, match="could not be uploaded"):
        await outputs(gone).save(job(TARGET), outcome())


@pytest.mark.parametrize(
    "save_dir",
    [
        "oss://other/data-oss",
        "oss://examplebucket",
        "oss://examplebucket/",
        "oss://examplebucket/data",
        "oss://examplebucket/data-oss-secret",
        "oss://examplebucket/data-oss/../private",
        "oss://examplebucket/data-oss//x",
        "oss://examplebucket/data-oss/./x",
        "oss://examplebucket/data-oss/a\\b",
        "oss://examplebucket/data-oss/a\nb",
        "oss://examplebucket.evil.com/data-oss",
        "oss://user@examplebucket/data-oss",
        "oss://EXAMPLEBUCKET/data-oss",
        "oss:///data-oss",
        "oss://",
    ],
)
async def test_an_address_that_is_not_listed_is_refused(
    settings: Settings, oss: FakeOss, save_dir: str
) -> None:
    with pytest.raises(InputRefused) as caught:
        await outputs(settings).save(job(Target("eas", save_dir)), outcome())
    assert caught.value.field == "save_dir" and oss.puts == 0


@pytest.mark.parametrize(
    "address",
    [
        "oss://examplebucket/data-oss",
        "oss://examplebucket/data-oss/",
        "oss://whole-bucket",
        "oss://whole-bucket/x",
    ],
)
def test_what_is_listed_and_below_it_is_allowed(settings: Settings, address: str) -> None:
    allowed = Oss(settings.oss).allowed(address, field="save_dir")
    assert str(allowed).rstrip("/") == address.rstrip("/")


def test_an_object_is_read_up_to_the_limit(settings: Settings, oss: FakeOss) -> None:
    oss.objects["whole-bucket/a.png"] = b"x" * 100
    reader = Oss(settings.oss)
    address = OssAddress("whole-bucket", "a.png")
    assert reader.get(address, limit_bytes=100, field="image") == b"x" * 100
    with pytest.raises(InputRefused, match="limit of 99 bytes"):
        reader.get(address, limit_bytes=99, field="image")


def test_an_object_that_is_not_there_or_breaks_off_is_unreachable(settings: Settings, oss: FakeOss) -> None:
    reader = Oss(settings.oss)
    with pytest.raises(InputUnreachable, match=r"^image: .*NoSuchKey"):
        reader.get(OssAddress("whole-bucket", "none.png"), limit_bytes=100, field="image")
    oss.objects["whole-bucket/a.png"] = b"x" * 100
    oss.cut_bodies = True
    with pytest.raises(InputUnreachable, match="could not be read"):
        reader.get(OssAddress("whole-bucket", "a.png"), limit_bytes=100, field="image")


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/data/outputs/a.png", "oss://bucket/prefix/outputs/a.png"),
        ("/data/inner/a.png", "oss://inner-bucket/a.png"),
        ("/database/a.png", None),
        ("/elsewhere/a.png", None),
    ],
)
def test_a_path_on_a_mount_is_an_object_the_longest_mount_first(path: str, address: str | None) -> None:
    mounts = (("/data", "oss://bucket/prefix"), ("/data/inner", "oss://inner-bucket"))
    found = Oss(OssSettings(mounts=mounts)).mounted_at(Path(path))
    assert (str(found) if found else None) == address


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou"),
        ("oss-cn-shanghai-internal.aliyuncs.com", "cn-shanghai"),
        ("http://oss-ap-southeast-1.aliyuncs.com/", "ap-southeast-1"),
        ("https://pictures.example.com", None),
        ("http://127.0.0.1:9000", None),
    ],
)
def test_an_endpoint_of_the_public_cloud_tells_its_region(endpoint: str, region: str | None) -> None:
    assert region_of(endpoint) == region


def test_a_region_is_signed_for_with_version_4(oss: FakeOss) -> None:
    signer = Oss(OssSettings(endpoint="https://oss-cn-hangzhou.aliyuncs.com"))
    link = signer.sign(OssAddress("examplebucket", "a/b.png"), 3600)
    assert link.startswith("https://examplebucket.oss-cn-hangzhou.aliyuncs.com/a/b.png?")
    assert "OSS4-HMAC-SHA256" in link and "cn-hangzhou" in link
