from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIN_FILES = ("constraints.txt", "constraints-test.txt", "constraints-gpu.txt")


def module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def install() -> ModuleType:
    return module(ROOT / "install.py", "our_install")


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """What a stable-diffusion-webui looks like from outside."""
    folder = tmp_path / "webui"
    for part in ("modules", "extensions"):
        (folder / part).mkdir(parents=True)
    (folder / "launch.py").touch()
    return folder


def pins(files: Iterable[str] = PIN_FILES) -> dict[str, str]:
    lines = [line.split(";")[0] for name in files for line in (ROOT / name).read_text().splitlines()]
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_package_is_pinned_to_one_exact_version() -> None:
    lines = [line for name in PIN_FILES for line in (ROOT / name).read_text().splitlines()]
    stated = [line for line in lines if not line.startswith("#")]
    assert all(
        re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*(; python_version < .*)?", line) for line in stated
    )
    assert len(stated) == len(pins())
    assert pins()["torch"] == "2.13.0"


def test_the_pins_are_what_these_tests_run_on() -> None:
    differing = {}
    for name, pinned in pins().items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue  # constraints-gpu.txt
        if installed != pinned:
            differing[name] = f"{installed} installed, {pinned} pinned"
    assert not differing


#: Modules of hosts and platforms that are not ours to install, of optional packages, and of clients
#: that tests pin in an environment of their own.
NOT_OURS = {
    *("modules", "launch", "modules_forge", "backend"),
    *("tests", "sd_cloud", "xformers", "ray", "spandrel", "redis", "eas_prediction"),
}


@pytest.mark.parametrize(
    ("folder", "files"), [("extensions", PIN_FILES[:1]), ("tests", PIN_FILES), ("scripts", PIN_FILES)]
)
def test_every_package_that_is_imported_is_pinned(folder: str, files: tuple[str, ...]) -> None:
    """A package that somebody only has in their own environment is missing in everybody else's."""
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins(files)}
    providers = packages_distributions()
    own = [*ROOT.glob("scripts"), *ROOT.glob("scripts/**/*"), *ROOT.glob("tests/**/*")]
    beside = {one.stem for one in own if one.is_dir() or one.suffix == ".py"}
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path) - NOT_OURS - beside - sys.stdlib_module_names:
            names = {re.sub(r"[-_.]+", "-", one).lower() for one in providers.get(name, [])}
            assert names & pinned, (
                f"{path.relative_to(ROOT)} imports {name}: add it to scripts/launch/pins.py"
            )


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    return {name.split(".")[0] for name in plain | froms}


def test_no_pin_names_where_packages_come_from() -> None:
    for name in PIN_FILES:
        assert not re.search(r"://|--index|--find-links", (ROOT / name).read_text())


def test_another_python_is_refused_in_a_sentence_that_says_what_to_install(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(install.Problem, match=r"needs Python 3\.98 or 3\.99.*apt-get install"):
        install.find_python(("3.98", "3.99"))


def test_this_python_is_taken_when_it_is_the_right_one(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = "{}.{}".format(*sys.version_info)
    assert install.find_python(("3.99", this)) == Path(sys.executable)


def test_a_finished_environment_is_reused_until_a_pin_changes(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in PIN_FILES:
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    made: list[tuple[str, ...]] = []

    def steps(wanted: Any) -> None:
        made.append(wanted.pins)
        wanted.python.parent.mkdir(parents=True, exist_ok=True)
        wanted.python.touch()

    monkeypatch.setattr(install, "steps", steps)
    run, test = install.environment(), install.environment(tests=True)
    for wanted in (run, run, test, run, test):
        assert install.set_up(wanted) == tmp_path / ".venv" / "bin" / "python"
    assert made == [run.pins, test.pins]
    (tmp_path / "constraints.txt").write_text("torch==2.13.1\n")
    install.set_up(run)
    assert made == [run.pins, test.pins, run.pins]


def test_a_failed_step_leaves_no_stamp_and_says_what_to_do(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = dataclasses.replace(install.environment(), venv=tmp_path)
    monkeypatch.setattr(install, "environment", lambda **_: wanted)
    monkeypatch.setattr(install, "make_venv", lambda _: None)
    monkeypatch.setattr(install, "run", lambda *_: 1)
    assert install.main(["setup"]) == 1
    said = capsys.readouterr().err
    assert "pip install torch==2.13.0" in said and "PIP_INDEX_URL" in said
    assert not list(tmp_path.iterdir())


def test_torch_is_the_cpu_build_unless_a_gpu_is_asked_for(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "make_venv", lambda _: None)
    monkeypatch.setattr(install, "pip", lambda _, *arguments: asked.append(arguments))
    install.steps(install.environment())
    assert asked[0] == ("install", "torch==2.13.0")
    assert not any("constraints-gpu" in part for call in asked for part in call)
    asked.clear()
    install.steps(install.environment(gpu=True))
    assert asked[0] == ("install", "torch===2.13.0")  # "===" does not take 2.13.0+cpu
    assert any(part.endswith("constraints-gpu.txt") for part in asked[1])
    asked.clear()
    install.steps(install.WEBUI_STACK)
    assert len(asked) == 1 and not any("torch" in part for part in asked[0])


def test_the_other_stack_has_the_webuis_own_versions(install: ModuleType) -> None:
    pinned = pins(install.WEBUI_STACK.pins)
    webuis = {
        "fastapi": "0.94.0",
        "starlette": "0.26.1",
        "httpx": "0.24.1",
        "Pillow": "9.5.0",
        "protobuf": "3.20.0",
    }
    assert webuis.items() <= pinned.items()
    assert pinned["pydantic"].startswith("1.10.") and "torch" not in pinned


def test_what_the_other_stack_leaves_out_exists(install: ModuleType) -> None:
    for pattern in install.STANDALONE_TESTS:
        assert list(ROOT.glob(pattern)), pattern


def test_the_webui_command_copies_the_extension_and_replaces_an_older_copy(
    install: ModuleType, webui: Path
) -> None:
    for _ in range(2):
        assert install.main(["webui", str(webui)]) == 0
        target = webui / "extensions" / "sd-cloud-api"
        assert (target / "preload.py").is_file() and (target / "sd_cloud" / "flags.py").is_file()
        assert not list(target.rglob("__pycache__")) and not list(target.rglob("*.egg-info"))
        assert [one.name for one in target.parent.iterdir()] == ["sd-cloud-api"]
        (target / "stale.txt").touch()
    assert install.main(["webui", str(webui)]) == 0
    assert not (target / "stale.txt").exists()


def test_a_folder_that_is_not_ours_is_not_replaced(
    install: ModuleType, webui: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = webui / "extensions" / "sd-cloud-api" / "precious.txt"
    other.parent.mkdir()
    other.touch()
    assert install.main(["webui", str(webui)]) == 1
    assert other.exists() and "move it away" in capsys.readouterr().err


def test_a_folder_that_is_no_webui_is_refused(
    install: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main(["webui", str(tmp_path)]) == 1
    assert "not a stable-diffusion-webui" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cloned_as", "extension"), [("sd-cloud", "sd-cloud-api"), ("sd-cloud-api", "sd-cloud-api-extension")]
)
def test_cloned_by_the_webuis_extensions_tab_it_puts_the_extension_beside_itself(
    webui: Path, cloned_as: str, extension: str
) -> None:
    clone = webui / "extensions" / cloned_as
    clone.mkdir()
    shutil.copy(ROOT / "install.py", clone)
    shutil.copytree(
        ROOT / "extensions", clone / "extensions", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    done = subprocess.run([sys.executable, clone / "install.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(webui / "extensions" / extension) in done.stdout
    assert (webui / "extensions" / extension / "preload.py").is_file()


def test_a_bare_call_anywhere_else_shows_the_commands(
    install: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main([]) == 2
    said = capsys.readouterr().out
    assert all(command in said for command in ("demo", "test", "launch -- FLAGS", "webui PATH"))


def test_scripts_has_no_module_that_a_webui_would_import() -> None:
    assert not [one.name for one in (ROOT / "scripts").iterdir() if one.is_file()]


def test_the_extensions_own_install_adds_nothing_where_nothing_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hook = module(ROOT / "extensions" / "sd-cloud-api" / "install.py", "extension_install")
    monkeypatch.setattr(hook.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    assert hook.main() == 0


def test_the_extensions_own_install_holds_every_installed_package_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hook = module(ROOT / "extensions" / "sd-cloud-api" / "install.py", "extension_install")
    monkeypatch.setitem(hook.REQUIREMENTS, "no-such-package", "no-such-package>=1")
    calls: list[list[str]] = []

    def pip(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        calls.append([*command, Path(command[command.index("-c") + 1]).read_text()])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(hook.subprocess, "run", pip)
    assert hook.main() == 0
    assert calls[0][-2] == "no-such-package>=1"
    assert f"numpy=={version('numpy')}\n" in calls[0][-1]
    assert "torch" not in hook.REQUIREMENTS
