"""The command line: ``sd-cloud COMMAND …``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sd_cloud import __version__

USAGE = """usage: sd-cloud COMMAND

  launch [flags]   serve the API; `sd-cloud launch --help` lists the flags
  users …          add, list, remove users; their tokens, roles and limits
  usage …          what was used, as CSV
  webhook-secret   show what calls to callback_url are signed with
  --version        print the version"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else ""
    if command == "launch":
        from sd_cloud.launch import launch

        return launch(arguments, os.environ)
    if command == "users":
        from sd_cloud.users_command import users

        return users(arguments, os.environ)
    if command == "usage":
        from sd_cloud.usage_command import run

        return run(arguments, os.environ)
    if command == "webhook-secret":
        from sd_cloud.webhook_command import show

        return show(arguments, os.environ)
    if command == "--version":
        print(f"sd-cloud-api {__version__}")
        return 0
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    print(f"sd-cloud: no command {command!r}\n{USAGE}" if command else USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
