"""Write the table of flags into the READMEs, from `sd_cloud.flags`.

``.venv/bin/python scripts/launch/flag_table.py`` rewrites what stands between the two markers;
a test fails when it no longer fits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "extensions" / "sd-cloud-api"))

from sd_cloud.flag import Flag  # noqa: E402
from sd_cloud.flags import FLAGS, OURS  # noqa: E402

BEGIN, END = "<!-- flags: written by scripts/launch/flag_table.py -->", "<!-- /flags -->"
CHINESE = json.loads(Path(__file__).with_name("flags_zh.json").read_text(encoding="utf-8"))
WORDS: dict[str, dict[str, Any]] = {
    "README.md": {
        "head": ("Flag", "Default", "What it does"),
        "not yet": " *(parsed; no effect yet)*",
        "rest": "Accepted, so that a command line carries over, and logged as having no meaning here: ",
        "help": lambda flag: flag.help,
    },
    "README.zh-CN.md": {
        "head": ("参数", "默认值", "作用"),
        "not yet": "*（已解析，暂无作用）*",
        "rest": "以下参数可以照旧写在命令行里，但在独立服务中没有意义，启动日志会说明：",
        "help": lambda flag: CHINESE.get(flag.name, f"{flag.name}: flags_zh.json lacks it"),
    },
}


def listed() -> list[Flag]:
    """The flags a reader wants to know of: the guide's and ours first, then the webui's that work."""
    return [*OURS, *(flag for flag in FLAGS if flag not in OURS and flag.standalone != "no meaning")]


def table(readme: str) -> str:
    words = WORDS[readme]
    lines = ["| " + " | ".join(words["head"]) + " |", "|---|---|---|"]
    for flag in listed():
        value = f" {flag.metavar or flag.kind.upper()}" if flag.kind != "switch" else ""
        later = words["not yet"] if flag.standalone == "not yet" else ""
        text = (words["help"](flag) + later).replace("|", "\\|")
        name = f"{flag.name}{value}".replace("|", "\\|")
        lines.append(f"| `{name}` | {_default(flag)} | {text} |")
    rest = ", ".join(f"`{flag.name}`" for flag in FLAGS if flag.standalone == "no meaning")
    return "\n".join([*lines, "", words["rest"] + rest, ""])


def _default(flag: Flag) -> str:
    if flag.initial in (False, None, [], ""):
        return ""
    value = flag.initial
    if isinstance(value, list):
        return f"`{','.join(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def with_table(text: str, readme: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(readme)}\n{END}{after}"


def main() -> None:
    for readme in WORDS:
        path = ROOT / readme
        path.write_text(with_table(path.read_text(encoding="utf-8"), readme), encoding="utf-8")


if __name__ == "__main__":
    main()
