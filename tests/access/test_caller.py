from __future__ import annotations

import base64
import dataclasses
import stat
from pathlib import Path

import pytest

from sd_cloud import errors
from sd_cloud.access import OPERATOR, Access, Caller, made_token
from sd_cloud.settings import Settings, settings_below

LOCAL = {"host": "127.0.0.1:7860"}


def access(tmp_path: Path, **changes: object) -> Access:
    return Access(settings_below(tmp_path, **changes))


def basic(user: str, password: str) -> dict[str, str]:
    return {**LOCAL, "authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "[::1]:7860"])
def test_a_direct_local_caller_is_the_operator(tmp_path: Path, peer: str, host: str) -> None:
    assert access(tmp_path).identify({"host": host}, peer) == Caller(OPERATOR, admin=True)


@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        (LOCAL, "192.168.1.7"),
        (LOCAL, "8.8.8.8"),
        (LOCAL, None),
        ({"host": "pictures.example.com"}, "127.0.0.1"),  # a re-bound name
        ({}, "127.0.0.1"),
        ({**LOCAL, "forwarded": "for=10.0.0.1"}, "127.0.0.1"),
        ({**LOCAL, "x-forwarded-for": "10.0.0.1"}, "127.0.0.1"),
        ({**LOCAL, "x-forwarded-proto": "https"}, "127.0.0.1"),
        ({**LOCAL, "x-real-ip": "10.0.0.1"}, "127.0.0.1"),
        ({**LOCAL, "origin": "https://evil.example.com"}, "127.0.0.1"),
        ({**LOCAL, "origin": "null"}, "127.0.0.1"),
        ({**LOCAL, "origin": "http://127.0.0.1:9999"}, "127.0.0.1"),
    ],
)
def test_anything_that_may_come_from_elsewhere_is_not_local(
    tmp_path: Path, headers: dict[str, str], peer: str | None
) -> None:
    with pytest.raises(errors.Unauthorized):
        access(tmp_path).identify(headers, peer)


def test_the_same_origin_and_a_listed_origin_are_not_foreign(tmp_path: Path) -> None:
    listed = access(tmp_path, cors_allow_origins=("https://studio.example.com",))
    for origin in ("http://127.0.0.1:7860", "https://studio.example.com"):
        assert listed.identify({**LOCAL, "origin": origin}, "127.0.0.1").admin


@pytest.mark.parametrize("form", ["s3cret", "Bearer s3cret", "bearer  s3cret"])
def test_a_token_is_taken_bare_and_as_bearer(tmp_path: Path, form: str) -> None:
    guarded = access(tmp_path, tokens=("other", "s3cret"))
    assert guarded.identify({"host": "x", "authorization": form}, "8.8.8.8") == Caller(OPERATOR, admin=True)


@pytest.mark.parametrize(
    "form", ["", "s3cre", "s3cretx", "Bearer ", "Basic s3cret", "Basic !!", "Bearer a b"]
)
def test_a_wrong_token_is_refused_also_from_this_machine(tmp_path: Path, form: str) -> None:
    guarded = access(tmp_path, tokens=("s3cret",))
    with pytest.raises(errors.Unauthorized):
        guarded.identify({**LOCAL, "authorization": form}, "127.0.0.1")


def test_basic_credentials_are_the_users_of_api_auth_and_own_what_they_make(tmp_path: Path) -> None:
    guarded = access(tmp_path, api_auth=(("ann", "pw1"), ("bob", "pw2")))
    assert guarded.identify(basic("bob", "pw2"), "8.8.8.8") == Caller("bob", admin=True)
    for user, password in [("ann", "pw2"), ("bob", ""), ("", ""), ("eve", "pw1")]:
        with pytest.raises(errors.Unauthorized):
            guarded.identify(basic(user, password), "8.8.8.8")


def test_a_browser_may_log_in_with_the_token_as_password(tmp_path: Path) -> None:
    assert access(tmp_path, tokens=("s3cret",)).identify(basic("any", "s3cret"), "8.8.8.8").owner == OPERATOR


def test_basic_credentials_that_a_browser_adds_to_a_foreign_page_are_refused(tmp_path: Path) -> None:
    guarded = access(tmp_path, api_auth=(("ann", "pw1"),))
    with pytest.raises(errors.Unauthorized, match="origin"):
        guarded.identify({**basic("ann", "pw1"), "origin": "https://evil.example.com"}, "8.8.8.8")


def test_no_auth_asks_nobody(tmp_path: Path) -> None:
    assert access(tmp_path, no_auth=True, listen=True).identify({}, "8.8.8.8").admin


def test_a_key_that_a_client_insists_on_sending_does_not_lock_a_local_caller_out(tmp_path: Path) -> None:
    assert access(tmp_path).identify({**LOCAL, "authorization": "Bearer any"}, "127.0.0.1").admin


def test_listen_without_auth_makes_one_token_and_keeps_it(tmp_path: Path) -> None:
    settings = listening(tmp_path)
    token, fresh = made_token(settings)
    assert token and fresh
    assert made_token(settings) == (token, False)
    kept = settings.state_dir / "token"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [one.name for one in settings.state_dir.iterdir()] == ["token"]
    guarded = Access(settings)
    assert guarded.identify({"host": "x", "authorization": token}, "8.8.8.8").admin
    assert guarded.identify(LOCAL, "127.0.0.1").admin
    with pytest.raises(errors.Unauthorized, match="Authorization"):
        guarded.identify({"host": "x"}, "8.8.8.8")


def test_an_empty_token_file_does_not_let_the_empty_token_in(tmp_path: Path) -> None:
    settings = listening(tmp_path)
    settings.state_dir.mkdir()
    (settings.state_dir / "token").write_text("\n")
    token, fresh = made_token(settings)
    assert token and fresh
    with pytest.raises(errors.Unauthorized):
        Access(settings).identify({"host": "x", "authorization": "Bearer"}, "8.8.8.8")


@pytest.mark.parametrize("changes", [{"no_auth": True}, {"tokens": ("t",)}, {"api_auth": (("u", "p"),)}])
def test_no_token_is_made_where_auth_is_configured(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = dataclasses.replace(listening(tmp_path), **changes)  # type: ignore[arg-type]
    assert made_token(settings) == (None, False)
    assert not settings.state_dir.exists()


def test_an_address_of_the_network_counts_as_listening(tmp_path: Path) -> None:
    token, _ = made_token(settings_below(tmp_path, host="192.168.1.7"))
    assert token


def listening(tmp_path: Path) -> Settings:
    return settings_below(tmp_path, listen=True, host="0.0.0.0")
