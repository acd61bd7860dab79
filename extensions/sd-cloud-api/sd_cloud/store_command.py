"""What the commands beside ``launch`` share: where the service's store is, and how trouble is told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from sd_cloud.errors import ServiceError
from sd_cloud.flags import FLAGS
from sd_cloud.settings import Settings
from sd_cloud.settings_from_flags import SettingsError, settings_from
from sd_cloud.store.database import FILE_NAME, Database, open_database

#: The flags of ``launch`` that say where a service's state is, and what of it is given instead.
PLACE = ("--data-dir", "--state-dir", "--database-url")
FROM_ENVIRONMENT = (*PLACE, "--webhook-secret")


def add_place(parser: argparse.ArgumentParser) -> None:
    for flag in FLAGS:
        if flag.name in PLACE:
            flag.add_to(parser, argparse.SUPPRESS)


def settings_given(given: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """As ``launch`` with the same flags and environment has them. Raises SettingsError."""
    argv = []
    for name in PLACE:
        value = getattr(given, name.lstrip("-").replace("-", "_"), None)
        if value is not None:
            argv += [name, str(value)]
    # What else is in the environment is launch's to complain about.
    of_launch = {flag.variable for flag in FLAGS if flag.name not in FROM_ENVIRONMENT}
    return settings_from(argv, {name: text for name, text in environ.items() if name not in of_launch})


@contextmanager
def opened(given: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[Database]:
    """The service's database. Raises SettingsError, OSError."""
    settings = settings_given(given, environ)
    if settings.database_url is None and not (settings.state_dir / FILE_NAME).exists():
        # A mistyped folder looks like a service without users: say which it is.
        print(f"sd-cloud: a new store is made in {settings.state_dir}", file=sys.stderr)
    database = open_database(settings.state_dir, settings.database_url)
    try:
        yield database
    finally:
        database.close()


def with_problems(run: Callable[[], None]) -> int:
    """Run a command; what went wrong is a sentence on standard error. The exit code."""
    try:
        run()
    except SettingsError as error:
        print(f"sd-cloud: {error}", file=sys.stderr)
        return 2
    except (ServiceError, OSError, ValueError) as error:
        print(f"sd-cloud: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0
