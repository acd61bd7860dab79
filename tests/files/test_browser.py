from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sd_cloud.access import Caller
from sd_cloud.errors import BadRequest, InputRefused, NotAllowed, NotFound, SavingFailed, ServiceError
from sd_cloud.files import FileBrowser, browser
from sd_cloud.settings import settings_below

ADMIN, BOB = Caller("local", admin=True), Caller("bob")


async def content(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.fixture
def files(tmp_path: Path) -> FileBrowser:
    for name in ("outputs/images/bob", "outputs/images/eve", "models/Lora", "embeddings", "extensions"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outputs/images/bob/1.png").write_bytes(b"bob's")
    (tmp_path / "outputs/images/eve/1.png").write_bytes(b"eve's")
    (tmp_path / "models/Lora/style.safetensors").write_bytes(b"tensors")
    (tmp_path / "config.json").write_text("{}")
    return FileBrowser(settings_below(tmp_path))


def everything(folder: Path) -> dict[Path, bytes]:
    return {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def names(files: FileBrowser, caller: Caller, path: str) -> list[str]:
    return [one.name for one in files.listed(caller, path)]


def test_an_admin_sees_outputs_models_and_embeddings_and_others_their_own_pictures(
    files: FileBrowser,
) -> None:
    assert names(files, ADMIN, "") == ["outputs", "models", "embeddings"]
    assert names(files, ADMIN, "outputs/images") == ["bob", "eve"]
    assert names(files, ADMIN, "models/Lora") == ["style.safetensors"]
    assert names(files, BOB, "") == ["outputs"]
    assert names(files, BOB, "outputs") == ["1.png"]
    assert files.file(BOB, "outputs/1.png").read_bytes() == b"bob's"


@pytest.mark.parametrize(
    "path",
    [
        "outputs/../config.json",
        "outputs/../models/Lora/style.safetensors",
        "models/../config.json",
        "models/../extensions/x.py",
        "embeddings/../../x",
        "extensions/x.py",
        "/etc/passwd",
        "outputs/\0",
        "..",
    ],
)
async def test_no_path_leads_out_of_the_roots(files: FileBrowser, path: str, tmp_path: Path) -> None:
    before = everything(tmp_path)
    for work in (files.file, files.listed, files.remove, files.make_folder):
        with pytest.raises(ServiceError) as refused:
            work(ADMIN, path)
        assert isinstance(refused.value, (InputRefused, NotFound, BadRequest))
    with pytest.raises(ServiceError):
        await files.put(ADMIN, path, content(b"x"))
    assert everything(tmp_path) == before


def test_a_link_out_of_a_root_is_not_followed(files: FileBrowser, tmp_path: Path) -> None:
    (tmp_path / "outputs/way-out").symlink_to(tmp_path)
    (tmp_path / "models/way-out").symlink_to("/etc")
    for path in ("outputs/way-out/config.json", "models/way-out/passwd", "models/way-out"):
        with pytest.raises(InputRefused):
            files.file(ADMIN, path)


async def test_others_reach_neither_models_nor_anybody_elses_pictures(files: FileBrowser) -> None:
    with pytest.raises(NotAllowed):
        files.listed(BOB, "models")
    with pytest.raises(NotAllowed):
        await files.put(BOB, "models/Lora/mine.safetensors", content(b"x"))
    for path in ("outputs/../eve/1.png", "outputs/../../images/eve/1.png"):
        with pytest.raises(InputRefused):
            files.file(BOB, path)


async def test_a_file_is_put_renamed_and_removed(files: FileBrowser, tmp_path: Path) -> None:
    assert await files.put(ADMIN, "models/Lora/new/a.safetensors", content(b"ab", b"", b"c")) == 3
    place = tmp_path / "models/Lora/new"
    assert (place / "a.safetensors").read_bytes() == b"abc"
    files.rename(ADMIN, "models/Lora/new/a.safetensors", "b.safetensors")
    assert [one.name for one in place.iterdir()] == ["b.safetensors"]
    files.remove(ADMIN, "models/Lora/new/b.safetensors")
    files.remove(ADMIN, "models/Lora/new")
    assert not place.exists()


async def test_nothing_that_is_there_is_written_over(files: FileBrowser, tmp_path: Path) -> None:
    style = tmp_path / "models/Lora/style.safetensors"
    with pytest.raises(BadRequest, match="there already"):
        await files.put(ADMIN, "models/Lora/style.safetensors", content(b"x"))
    await files.put(ADMIN, "models/Lora/other", content(b"y"))
    with pytest.raises(BadRequest, match="there already"):
        files.rename(ADMIN, "models/Lora/other", "style.safetensors")
    assert style.read_bytes() == b"tensors"


async def test_an_upload_that_breaks_off_leaves_nothing(files: FileBrowser, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await files.put(ADMIN, "models/Lora/half", broken())
    assert names(files, ADMIN, "models/Lora") == ["style.safetensors"]
    assert not list((tmp_path / "models/Lora").glob(".*"))


async def test_an_upload_leaves_room_on_the_disk(files: FileBrowser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "RESERVED_BYTES", 2**62)
    with pytest.raises(SavingFailed, match="disk"):
        await files.put(ADMIN, "models/Lora/large", content(b"x"))
    assert names(files, ADMIN, "models/Lora") == ["style.safetensors"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "x" * 256])
def test_names_that_are_no_names_are_refused(files: FileBrowser, name: str) -> None:
    with pytest.raises(BadRequest):
        files.rename(ADMIN, "models/Lora/style.safetensors", name)


def test_a_folder_that_holds_something_and_a_root_stay(files: FileBrowser) -> None:
    with pytest.raises(SavingFailed):
        files.remove(ADMIN, "outputs/images")
    for root in ("outputs", "models", "embeddings"):
        with pytest.raises(InputRefused):
            files.remove(ADMIN, root)
