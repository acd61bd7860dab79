"""``sd-cloud webhook-secret``: what receivers of calls back check signatures with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from sd_cloud.store_command import add_place, settings_given, with_problems
from sd_cloud.webhook_secret import encoded, webhook_secret


def show(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sd-cloud webhook-secret",
        description="Show the secret that receivers of callback_url check signatures with.",
    )
    add_place(parser)
    given = parser.parse_args(list(argv))
    return with_problems(lambda: print(encoded(webhook_secret(settings_given(given, environ)))))
