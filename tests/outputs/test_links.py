"""Links that need no token: ours, unchanged, not expired, and only to saved pictures."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sd_cloud.errors import NotAllowed, TaskNotFound
from sd_cloud.outputs import Outputs
from sd_cloud.outputs.links import Links, link_secret
from sd_cloud.settings import Settings
from tests.outputs.pictures import job, outcome, settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def picture(settings: Settings) -> Path:
    file = settings.outputs_dir / "txt2img-images" / "a b#1.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"png")
    return file


def parts(link: str) -> tuple[str, str]:
    """Token and file name, as the route gets them."""
    *_, token, name = urlsplit(link).path.split("/")
    return token, unquote(name)


def test_a_link_leads_to_its_file_and_ends_in_its_name(settings: Settings, picture: Path) -> None:
    links = Links(settings)
    link = links.sign(picture, "alice")
    assert link.startswith("http://127.0.0.1:7860/sd-cloud/v1/files/") and link.endswith("/a%20b%231.png")
    assert links.verify(*parts(link)) == picture
    assert Links(settings).verify(*parts(link)) == picture, "a restart keeps the secret"


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"public_url": "https://sd.example.com/x/"}, "https://sd.example.com/x/sd-cloud/v1/files/"),
        ({"host": "0.0.0.0", "port": 8000}, "http://127.0.0.1:8000/sd-cloud/"),
        ({"host": "::"}, "http://[::1]:7860/sd-cloud/"),
        ({"host": "2001:db8::5"}, "http://[2001:db8::5]:7860/sd-cloud/"),
        ({"subpath": "/sd/"}, "http://127.0.0.1:7860/sd/sd-cloud/"),
        ({"tls_certfile": Path("cert.pem")}, "https://127.0.0.1:7860/sd-cloud/"),
    ],
)
def test_links_begin_with_the_public_url(tmp_path: Path, changes: dict[str, object], begins: str) -> None:
    settings = settings_in(tmp_path, **changes)
    assert Links(settings).sign(settings.outputs_dir / "a.png", "x").startswith(begins)


def test_a_link_expires(settings: Settings, picture: Path) -> None:
    links = Links(settings)
    token, name = parts(links.sign(picture, "alice", time.time() - 1))
    with pytest.raises(NotAllowed, match="expired"):
        links.verify(token, name)


def test_no_character_of_a_token_can_be_changed(settings: Settings, picture: Path) -> None:
    links = Links(settings)
    token, name = parts(links.sign(picture, "alice"))
    for position in range(len(token) - 1):  # the last one may hold unused bits
        other = "A" if token[position] != "A" else "B"
        with pytest.raises(NotAllowed):
            links.verify(token[:position] + other + token[position + 1 :], name)


@pytest.mark.parametrize("token", ["", "AA", "not base64!", "é", "A" * 60, "A" * 100, "=" * 8])
def test_what_is_no_token_is_not_allowed(settings: Settings, picture: Path, token: str) -> None:
    with pytest.raises(NotAllowed):
        Links(settings).verify(token, picture.name)


def test_the_name_in_the_link_is_the_files_own(settings: Settings, picture: Path) -> None:
    token, _ = parts(Links(settings).sign(picture, "alice"))
    with pytest.raises(NotAllowed):
        Links(settings).verify(token, "other.html")


def test_another_services_link_is_not_ours(settings: Settings, picture: Path, tmp_path: Path) -> None:
    other = settings_in(tmp_path, state_dir=tmp_path / "other-state")
    with pytest.raises(NotAllowed):
        Links(settings).verify(*parts(Links(other).sign(picture, "alice")))


def test_a_file_that_is_gone_is_not_found(settings: Settings, picture: Path) -> None:
    links = Links(settings)
    link = links.sign(picture, "alice")
    picture.unlink()
    with pytest.raises(TaskNotFound):
        links.verify(*parts(link))


def test_a_file_that_became_a_link_out_of_the_outputs_is_not_served(
    settings: Settings, picture: Path, tmp_path: Path
) -> None:
    links = Links(settings)
    link = links.sign(picture, "alice")
    secret = tmp_path / "secret"
    secret.write_text("x")
    picture.unlink()
    picture.symlink_to(secret)
    with pytest.raises(NotAllowed):
        links.verify(*parts(link))


async def test_the_link_of_a_saved_picture_serves_that_picture(settings: Settings) -> None:
    saved = (await Outputs(settings).save(job(), outcome())).pictures[0]
    assert saved.path is not None and saved.link is not None
    file = await asyncio.to_thread(Links(settings).verify, *parts(saved.link))
    assert str(file) == saved.path and saved.link.endswith(f"/{file.name}")


def test_the_secret_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    secret = link_secret(state)
    assert len(secret) == 32 and link_secret(state) == secret
    assert stat.S_IMODE((state / "link-secret").stat().st_mode) == 0o600
    assert [p.name for p in state.iterdir()] == ["link-secret"]


async def test_many_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    secrets = await asyncio.gather(*(asyncio.to_thread(link_secret, tmp_path / "state") for _ in range(16)))
    assert len(set(secrets)) == 1


def test_a_damaged_secret_is_an_error_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link-secret").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        link_secret(tmp_path)
