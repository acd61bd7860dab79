"""``sd-cloud users``: who may use a service, on the store of that service."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sd_cloud.access import Administration
from sd_cloud.store.users import UserTable
from sd_cloud.store_command import add_place, opened, with_problems

Command = Callable[[Administration, argparse.Namespace], Awaitable[None]]

DESCRIPTION = """Users, their tokens and limits. A running service knows of a change at once.
Give --data-dir, --state-dir and --database-url as the service is started with."""


def users(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit code: 0, 1 when it could not be done, 2 for a command line that can't be read."""
    given = _parser().parse_args(list(argv))
    return with_problems(lambda: _run(given, environ))


def _run(given: argparse.Namespace, environ: Mapping[str, str]) -> None:
    if "asks_password" in given:
        given.password_text = _password(given)  # before the store is opened: a person takes their time
    with opened(given, environ) as database:
        asyncio.run(given.command(Administration(UserTable(database)), given))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sd-cloud users", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str, *, of_user: bool = True) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        if of_user:
            one.add_argument("name", metavar="NAME")
        add_place(one)
        one.set_defaults(command=run)
        return one

    adding = command("add", _add, "add a user; the password is asked for")
    adding.add_argument("--role", default="user", help="user (default) or admin")
    _ask_password(adding)
    command("list", _list, "list the users", of_user=False)
    command("remove", _remove, "remove a user and the user's tokens; finished tasks stay until they expire")
    role = command("role", _role, "make a user an admin, or an admin a user")
    role.add_argument("role", metavar="ROLE", help="user or admin")
    _ask_password(command("password", _set_password, "set a user's password; log-ins from before end"))
    command("disable", _disable, "let a user do nothing until enabled again")
    command("enable", _enable, "let a disabled user in again")
    quota = command("quota", _quota, "show or set a user's limits")
    quota.add_argument("--waiting", metavar="N", help="most unfinished tasks at once; none: no limit")
    quota.add_argument("--daily-pictures", metavar="N", help="most pictures per day (UTC); none: no limit")

    tokens = commands.add_parser("token", help="create, list and revoke a user's tokens")
    commands = tokens.add_subparsers(required=True, metavar="COMMAND")
    create = command("create", _create_token, "make a token; it is shown this once")
    create.add_argument("--label", default="command line", help="what it is for")
    create.add_argument("--days", metavar="N", type=float, help="days until it expires (default: never)")
    command("list", _list_tokens, "list a user's tokens by id")
    revoke = command("revoke", _revoke_token, "end a token")
    revoke.add_argument("token_id", metavar="ID", help="as `token list` shows it")
    return parser


def _ask_password(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    how.add_argument("--no-password", action="store_true", help="no password: tokens only")
    parser.set_defaults(asks_password=True)


def _password(given: argparse.Namespace) -> str | None:
    """Never from the command line, which every user of the machine can read. Raises OSError."""
    if given.no_password:
        return None
    if given.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise OSError("there is no terminal to ask for a password; give --password-stdin or --no-password")
    password = getpass.getpass(f"Password for {given.name}: ")
    if getpass.getpass("Again: ") != password:
        raise OSError("the two passwords differ")
    return password


# -- commands -------------------------------------------------------------------------------------


async def _add(admin: Administration, given: argparse.Namespace) -> None:
    await admin.add(given.name, {"role": given.role, "password": given.password_text})
    print(f"added {given.name} ({given.role})")
    if given.no_password:
        print(f"a token lets {given.name} in: sd-cloud users token create {given.name}")
    if not any(one["role"] == "admin" for one in await admin.all()):
        print("no user is an admin: only the service's own token can change options and models")


async def _list(admin: Administration, given: argparse.Namespace) -> None:
    found = await admin.all()
    if not found:
        print("no users; the first is added with: sd-cloud users add NAME --role admin", file=sys.stderr)
        return
    rows = [("NAME", "ROLE", "PASSWORD", "TOKENS", "WAITING", "PICTURES A DAY", "")]
    for one in found:
        rows.append(
            (
                one["name"], one["role"], "yes" if one["password"] else "no", str(one["tokens"]),
                _limit(one["waiting_limit"]), _limit(one["daily_pictures"]),
                "disabled" if one["disabled"] else "",
            )
        )  # fmt: skip
    _print_table(rows)


async def _remove(admin: Administration, given: argparse.Namespace) -> None:
    await admin.remove(given.name)
    print(f"removed {given.name}")
    if not await admin.all():
        print("no user is left: without --token callers on this machine are let in again")


async def _role(admin: Administration, given: argparse.Namespace) -> None:
    await admin.change(given.name, {"role": given.role})
    print(f"{given.name} is {'an admin' if given.role == 'admin' else 'a user'}")


async def _set_password(admin: Administration, given: argparse.Namespace) -> None:
    await admin.change(given.name, {"password": given.password_text})
    print(f"{given.name} has {'no password' if given.password_text is None else 'a new password'}")


async def _disable(admin: Administration, given: argparse.Namespace) -> None:
    await admin.change(given.name, {"disabled": True})
    print(f"{given.name} is disabled")


async def _enable(admin: Administration, given: argparse.Namespace) -> None:
    await admin.change(given.name, {"disabled": False})
    print(f"{given.name} is enabled")


async def _quota(admin: Administration, given: argparse.Namespace) -> None:
    wanted = {"waiting_limit": given.waiting, "daily_pictures": given.daily_pictures}
    fields = {name: _number(name, text) for name, text in wanted.items() if text is not None}
    if fields:
        user = await admin.change(given.name, fields)
    else:
        user = await admin.one(given.name)
    print(
        f"{given.name}: unfinished tasks {_limit(user['waiting_limit'])}, "
        f"pictures a day {_limit(user['daily_pictures'])}"
    )


async def _create_token(admin: Administration, given: argparse.Namespace) -> None:
    token = await admin.make_token(given.name, given.label, given.days)
    # The token alone on standard output, so that a script can take it.
    print("shown this once; callers send the header 'Authorization: <token>'", file=sys.stderr)
    print(token)


async def _list_tokens(admin: Administration, given: argparse.Namespace) -> None:
    rows = [("ID", "LABEL", "CREATED", "EXPIRES")]
    for one in await admin.tokens(given.name):
        rows.append((one["id"], one["label"], _moment(one["created"]), _moment(one["expires"])))
    _print_table(rows)


async def _revoke_token(admin: Administration, given: argparse.Namespace) -> None:
    await admin.revoke_token(given.name, given.token_id)
    print(f"revoked {given.token_id}")


# -- words ----------------------------------------------------------------------------------------


def _number(name: str, text: str) -> Any:
    """A limit from its text; what is no number is refused with the field's name where all are."""
    if text.lower() == "none":
        return None
    return int(text) if text.isascii() and text.isdecimal() else text


def _limit(value: int | None) -> str:
    return "no limit" if value is None else str(value)


def _moment(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
