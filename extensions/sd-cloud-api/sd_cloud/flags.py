"""Every launch flag, declared once: ours here, the webui's in `flags_of_the_webui.py`.

The standalone launcher reads them all; the extension's ``preload.py`` adds to the webui's parser
only those that are ours. The README's table is generated from here (``scripts/launch/flag_table.py``).
Nothing but the standard library is imported: the webui reads this before its own set-up.
"""

from __future__ import annotations

from typing import Any

from sd_cloud.flag import Flag, Kind
from sd_cloud.flags_of_the_webui import EXTENSIONS, WEBUI


def _ours(name: str, help: str, kind: Kind = "switch", default: Any = None, **more: Any) -> Flag:
    return Flag(name, help, kind, default, "ours", **more)


# The guide's own, and what this service adds.
OURS: tuple[Flag, ...] = (
    _ours("--blade", "compile the model for more speed", standalone="not yet"),
    _ours("--filebrowser", "show the FileBrowser page for models and pictures"),
    _ours("--time-log", "log method, route, status, seconds and job id of every request"),
    _ours("--enable-nsfw-censor", "check every picture and blur what is unsafe"),
    _ours(
        "--always-hide-tabs",
        "tabs of the page that are not shown",
        "list",
        metavar="TAB",
    ),
    _ours(
        "--min-ram-reserved",
        "GiB of RAM to leave free when checkpoints are kept in it",
        "float",
        4.0,
        metavar="GIB",
    ),
    _ours(
        "--sd-dynamic-cache", "keep recently used checkpoints in RAM as long as --min-ram-reserved stays free"
    ),
    _ours("--root-extensions", "share one extensions folder between all users", standalone="not yet"),
    _ours(
        "--token",
        "a caller must send this token (Authorization: TOKEN or Bearer TOKEN)",
        "list",
        metavar="TOKEN",
        secret=True,
    ),
    _ours("--no-auth", "ask nobody who they are: for a service behind a gateway that does"),
    _ours(
        "--public-url",
        "where callers reach this service; links to pictures start with it",
        "text",
        metavar="URL",
    ),
    _ours(
        "--state-dir",
        "local folder for the task store, the token and link keys; never a network mount",
        "path",
        metavar="DIR",
    ),
    _ours(
        "--database-url",
        "task store in PostgreSQL instead of the state dir: postgresql+psycopg://user@host/name",
        "text",
        metavar="URL",
        secret=True,
    ),
    _ours(
        "--drain-seconds", "how long a running job may go on after SIGTERM", "float", 60.0, metavar="SECONDS"
    ),
    _ours(
        "--save-dir-root", "another folder below which a request's save_dir may lie", "list", metavar="DIR"
    ),
    _ours("--link-seconds", "how long a link to a picture stays valid", "int", 24 * 3600, metavar="SECONDS"),
    _ours(
        "--image-link-allow",
        "private addresses that picture links may reach: CIDR or host",
        "list",
        metavar="CIDR|HOST",
    ),
    _ours(
        "--image-link-max-mib", "largest picture that is downloaded or decoded", "float", 32.0, metavar="MIB"
    ),
    _ours(
        "--image-link-seconds",
        "longest time one picture's download may take",
        "float",
        20.0,
        metavar="SECONDS",
    ),
    _ours("--image-link-redirects", "most redirects a picture link may take", "int", 5, metavar="COUNT"),
    _ours("--image-max-megapixels", "most pixels an input picture may have", "float", 64.0, metavar="MPX"),
    _ours(
        "--image-types",
        "picture types that are read",
        "list",
        ["png", "jpeg", "webp", "tiff", "bmp", "gif"],
        metavar="TYPE",
    ),
    _ours(
        "--oss-allow",
        "bucket/prefix that requests may write to and read from as oss://bucket/prefix",
        "list",
        metavar="BUCKET/PREFIX",
    ),
    _ours(
        "--oss-mount",
        "which oss:// prefix is mounted at a path: /data=oss://bucket/prefix",
        "list",
        metavar="PATH=OSS",
    ),
    _ours(
        "--oss-endpoint",
        "OSS endpoint; keys come from OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
        "text",
        metavar="URL",
    ),
    _ours(
        "--queue-limit",
        "most waiting jobs; beyond it a request is answered 429",
        "int",
        1000,
        metavar="COUNT",
    ),
    _ours(
        "--webhook-secret",
        "what calls to callback_url are signed with (default: one in the state dir)",
        "text",
        metavar="WHSEC",
        secret=True,
    ),
    _ours("--job-seconds", "longest time one job may take", "float", 3600.0, metavar="SECONDS"),
    _ours(
        "--max-delivery",
        "how often a job is given to an engine in all, when engines die",
        "int",
        2,
        metavar="COUNT",
    ),
    _ours(
        "--engine-start-seconds",
        "longest time an engine may take to start",
        "float",
        120.0,
        metavar="SECONDS",
    ),
    _ours(
        "--dashscope-model",
        "which checkpoint a DashScope model name stands for (default: the first of its base)",
        "list",
        metavar="NAME=CHECKPOINT",
    ),
    _ours(
        "--async-service",
        "name of the asynchronous queue service",
        "text",
        "sd_async",
        metavar="NAME",
    ),
    _ours(
        "--queue-payload-kib",
        "largest message of the asynchronous queue",
        "float",
        8.0,
        metavar="KIB",
    ),
    _ours(
        "--task-retention",
        "how many hours finished tasks are kept (without it: 24 for DashScope's, 720 for others)",
        "float",
        metavar="HOURS",
    ),
)

FLAGS: tuple[Flag, ...] = OURS + WEBUI + EXTENSIONS
