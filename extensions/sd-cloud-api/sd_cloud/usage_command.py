"""``sd-cloud usage``: what was used, as CSV."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence

from sd_cloud.errors import BadRequest
from sd_cloud.moments import moment
from sd_cloud.store import usage
from sd_cloud.store.database import Database
from sd_cloud.store_command import add_place, opened, with_problems

DESCRIPTION = """One line per task that an engine worked on, oldest first. Give --data-dir,
--state-dir and --database-url as the service is started with."""


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(prog="sd-cloud usage", description=DESCRIPTION)
    parser.add_argument("--from", dest="since", metavar="DATE", help="first day or moment (UTC): 2026-11-01")
    parser.add_argument("--to", dest="until", metavar="DATE", help="last day, it included, or the moment")
    parser.add_argument("--user", metavar="NAME", help="of this user only")
    add_place(parser)
    given = parser.parse_args(list(argv))

    def export() -> None:
        since = moment(given.since, field="--from") if given.since else 0.0
        until = moment(given.until, field="--to", ends=True) if given.until else None
        if until is not None and until <= since:
            raise BadRequest(f"{given.until} is before --from {given.since}", field="--to")
        with opened(given, environ) as database:
            asyncio.run(_print(database, since, until, given.user))

    return with_problems(export)


async def _print(database: Database, since: float, until: float | None, user: str | None) -> None:
    async for lines in usage.as_csv(database, since=since, until=until, owner=user):
        sys.stdout.write(lines)
