"""How near our pictures are to those of a real webui 1.10.1.

``golden``   makes the golden pictures and writes their table into ``docs/fidelity.md``
``prepare``  writes a data dir with the models that the cases need, for a webui or for ours
``webui``    sends the cases to a running webui (started on a prepared data dir, in float32 on the
             CPU) and to ours, prints the table, and with ``--write`` puts it into ``docs/fidelity.md``
``controlnet``  the same with ControlNet's cases; ``prepare --controlnet EXTENSION`` makes their models
             and puts a copy of sd-webui-controlnet, which builds small ControlNets, into the data dir.
             With ``--wide`` the checkpoint and the ControlNets are as wide as real ones, and the
             copy is as it is: 6 GB of memory for either side

Without ``--ours URL`` the service is started for the run, on a data dir of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from scripts.bench.figures import service
from scripts.fidelity import cases_controlnet, controlnet_models, golden, report
from scripts.fidelity.answers import Asked
from scripts.fidelity.case import Case
from scripts.fidelity.cases import all_cases
from scripts.fidelity.compare import Row, compared
from scripts.fidelity.models import prepare

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"
PAGE = ROOT / "docs" / "fidelity.md"


def main() -> int:
    given = _arguments()
    if given.what == "prepare":
        _prepare(given, given.folder)
        return 0
    name = _place(given)
    if given.write:
        report.check_place(PAGE, name)
    with _ours(given) as url:
        if given.what == "golden":
            rows = golden.rows(Asked(url), given.golden)
            table = report.golden_table(rows)
        else:
            wanted = [case for case in _cases(given) if _is_wanted(case, given.only)]
            webui = Asked(given.webui, given.keep, remembers=True)
            webui.save_options()
            rows = []
            for row in _rows(wanted, webui, Asked(url)):
                rows.append(row)
                if given.rows:
                    with given.rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
            if given.rows:
                rows = _latest_rows(given.rows, _cases(given))
            table = report.case_tables(rows)
    if given.write:
        report.put_into(PAGE, name, table)
    differing = [row for row in rows if not row.same]
    print(f"{len(rows) - len(differing)} of {len(rows)} the same")
    return 1 if differing else 0


def _place(given: argparse.Namespace) -> str:
    """Where in the page the table stands."""
    if given.what == "controlnet":
        return "controlnet-wide" if given.wide else "controlnet"
    return {"golden": "golden", "webui": "cases"}[given.what]


def _prepare(given: argparse.Namespace, data_dir: Path) -> None:
    prepare(data_dir, given.golden, t5=given.t5)
    if given.what == "controlnet" or given.controlnet:
        controlnet_models.prepare(data_dir, given.golden, given.controlnet, wide=given.wide)


def _cases(given: argparse.Namespace) -> list[Case]:
    if given.what == "webui":
        return all_cases()
    return cases_controlnet.wide_cases() if given.wide else cases_controlnet.cases()


def _is_wanted(case: Case, only: list[str]) -> bool:
    return not only or any(part in (case.group, case.name) or part in case.name for part in only)


def _rows(cases: list[Case], webui: Asked, ours: Asked) -> Iterator[Row]:
    for case in cases:
        started = time.monotonic()
        row = compared(case, webui.answer(case), ours.answer(case))
        print(report.line(row), f"({time.monotonic() - started:.1f} s)", flush=True)
        yield row


def _latest_rows(file: Path, cases: list[Case]) -> list[Row]:
    """Of every case there still is, what was measured last."""
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    known = {(one["group"], one["name"]): Row(**one) for one in found}
    return [known[place] for case in cases if (place := (case.group, case.name)) in known]


@contextmanager
def _ours(given: argparse.Namespace) -> Iterator[str]:
    if given.ours:
        yield given.ours
        return
    with tempfile.TemporaryDirectory() as folder:
        _prepare(given, Path(folder))
        flags = ("--use-cpu", "all", "--no-half", "--precision", "full")
        with service(Path(folder), *flags) as started:
            yield started.url


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m scripts.fidelity", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("golden", "webui", "controlnet", "prepare"))
    parser.add_argument("folder", type=Path, nargs="?", help="prepare: the data dir to fill")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="the folder of the golden pictures")
    parser.add_argument("--webui", help="the address of a webui, http://host:port")
    parser.add_argument("--controlnet", type=Path, help="prepare: a folder with sd-webui-controlnet")
    parser.add_argument("--wide", action="store_true", help="controlnet: at real models' width")
    parser.add_argument("--ours", help="the address of our service, on a prepared data dir")
    parser.add_argument("--keep", type=Path, help="a folder for the webui's answers: each is asked for once")
    parser.add_argument(
        "--rows", type=Path, help="a file that results are added to; the table has the last of each"
    )
    parser.add_argument("--only", nargs="*", default=[], help="groups, or names of cases")
    parser.add_argument(
        "--t5", action="store_true", help="SD 3 with T5, 0.5 GB: prepare the webui's folder with it as well"
    )
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    given = parser.parse_args()
    if given.what in ("webui", "controlnet") and not given.webui:
        parser.error(f"{given.what}: --webui URL is needed")
    if given.what == "prepare" and given.folder is None:
        parser.error("prepare: which folder?")
    return given


if __name__ == "__main__":
    sys.exit(main())
