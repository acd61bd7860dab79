"""The command line as a person meets it."""

from __future__ import annotations

import asyncio
import getpass
import io
import sys
from pathlib import Path

import pytest

from sd_cloud.__main__ import main
from sd_cloud.access import Users
from sd_cloud.settings_from_flags import settings_from
from sd_cloud.store.database import FILE_NAME, open_database
from sd_cloud.store.users import UserTable


class Typed(io.StringIO):
    terminal = False

    def isatty(self) -> bool:
        return self.terminal


class Terminal:
    """Types what is expected of a person; ``told``: what the last command printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.out = self.err = ""

    def run(self, *words: str, typed: str = "", command: str = "users") -> int:
        self._monkeypatch.setattr(sys, "stdin", Typed(typed))
        try:
            code = main([command, *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SD_CLOUD_PORT", "not a port")  # launch's business alone
    return Terminal(capsys, monkeypatch)


def test_a_user_who_was_added_can_log_in_at_the_service_of_that_data_dir(
    terminal: Terminal, tmp_path: Path
) -> None:
    assert terminal.run("add", "anna", "--role", "admin", "--password-stdin", typed="long enough\n") == 0
    settings = settings_from(["--data-dir", "data"], {"XDG_STATE_HOME": str(tmp_path / "xdg")})
    database = open_database(settings.state_dir)
    caller = asyncio.run(Users(UserTable(database)).by_password("anna", "long enough"))
    database.close()
    assert caller is not None and caller.admin


def test_the_place_is_given_by_flag_or_environment_as_for_launch(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert terminal.run("add", "ben", "--no-password", "--state-dir", "by-flag") == 0
    assert "a new store is made in" in terminal.err and (tmp_path / "by-flag" / FILE_NAME).exists()
    monkeypatch.setenv("SD_CLOUD_STATE_DIR", str(tmp_path / "by-flag"))
    assert terminal.run("list") == 0 and "ben" in terminal.out and "new store" not in terminal.err
    monkeypatch.setenv("SD_CLOUD_DATABASE_URL", "mysql://x/y")
    assert terminal.run("list") == 1 and "--database-url" in terminal.err


def test_a_password_is_asked_for_twice_and_never_taken_from_the_command_line(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert terminal.run("add", "anna") == 1
    assert "--password-stdin" in terminal.err, "without a terminal it says what to do"
    assert terminal.run("add", "anna", "--password", "long enough") == 2
    monkeypatch.setattr(Typed, "terminal", True)
    typed = iter(["long enough", "lang enough", "long enough", "long enough"])
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(typed))
    assert terminal.run("add", "anna") == 1 and "differ" in terminal.err
    assert terminal.run("add", "anna") == 0 and "long" not in terminal.out


def test_a_token_is_shown_once_alone_on_standard_output_and_ends_when_revoked(terminal: Terminal) -> None:
    assert terminal.run("add", "ben", "--no-password") == 0
    assert terminal.run("token", "create", "ben", "--label", "laptop", "--days", "2") == 0
    [token] = terminal.out.split()
    assert terminal.run("token", "list", "ben") == 0
    assert token not in terminal.out and "laptop" in terminal.out
    token_id = terminal.out.splitlines()[1].split()[0]
    assert terminal.run("token", "revoke", "ben", token_id) == 0
    assert terminal.run("token", "list", "ben") == 0 and "laptop" not in terminal.out


def test_limits_roles_and_removal(terminal: Terminal) -> None:
    assert terminal.run("add", "anna", "--no-password", "--role", "admin") == 0
    assert terminal.run("add", "ben", "--no-password") == 0
    assert terminal.run("quota", "ben", "--waiting", "3", "--daily-pictures", "50") == 0
    assert terminal.run("quota", "ben", "--waiting", "none") == 0
    assert "unfinished tasks no limit, pictures a day 50" in terminal.out
    assert terminal.run("quota", "ben") == 0 and "pictures a day 50" in terminal.out
    assert terminal.run("remove", "anna") == 1 and "only admin" in terminal.err
    assert terminal.run("role", "ben", "admin") == 0 and terminal.run("remove", "anna") == 0
    assert terminal.run("disable", "ben") == 0 and terminal.run("list") == 0 and "disabled" in terminal.out
    assert terminal.run("enable", "ben") == 0 and terminal.run("remove", "ben") == 0
    assert "no user is left" in terminal.out
    assert terminal.run("list") == 0 and "users add" in terminal.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("role", "eve", "admin"), "there is no user 'eve'"),
        (("quota", "eve"), "there is no user 'eve'"),
        (("token", "create", "eve"), "there is no user 'eve'"),
        (("token", "list", "eve"), "there is no user 'eve'"),
        (("add", "local", "--no-password"), "can't be a user's name"),
        (("add", "ben", "--no-password", "--role", "king"), "there are admin and user"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_field(
    terminal: Terminal, words: tuple[str, ...], said: str
) -> None:
    assert terminal.run(*words) == 1 and said in terminal.err


def test_usage_is_printed_as_csv_and_odd_dates_are_named(terminal: Terminal) -> None:
    assert terminal.run("--from", "2026-11-01", "--to", "2026-11-30", "--user", "ben", command="usage") == 0
    assert terminal.out.strip().startswith("ended,task_id,owner")
    assert terminal.run("--from", "soon", command="usage") == 1 and "--from: 'soon'" in terminal.err
    days = ("--from", "2026-11-02", "--to", "2026-11-01")
    assert terminal.run(*days, command="usage") == 1 and "before --from" in terminal.err


def test_the_webhook_secret_is_shown_and_stays(terminal: Terminal) -> None:
    assert terminal.run(command="webhook-secret") == 0 and terminal.out.startswith("whsec_")
    shown = terminal.out
    assert terminal.run(command="webhook-secret") == 0 and terminal.out == shown
