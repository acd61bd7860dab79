"""The arrows of docs/architecture.md, held by reading the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "extensions" / "sd-cloud-api" / "sd_cloud"
ROOMS = ("inputs", "outputs", "engines", "store", "access")
STANDALONE = ("host", "engines/diffusion", "engines/cluster.py")
#: Loaded only where they exist, so never when a shared module is imported.
HEAVY = ("torch", "diffusers", "transformers", "gradio", "ray", "modules")


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, everywhere: bool) -> Iterator[str]:
    """Modules that a file imports: at module level, or anywhere in it."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def rooms_imported(path: Path) -> set[str]:
    ours = (name.split(".") for name in imports(path, everywhere=True) if name.startswith("sd_cloud."))
    return {parts[1] for parts in ours}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    used = rooms_imported(path) - {room}
    if room in ROOMS:
        forbidden = {*ROOMS, "service", "dialects", "app", "host", "inside_webui"} - {room}
        assert not used & forbidden, f"{room} reaches into {sorted(used & forbidden)}"
    if room == "service":
        assert not used & {"dialects", "app", "host"}
    if room in ("job", "errors", "settings"):
        assert used <= {"job", "errors", "settings"}
    if room not in ("app", "host", "inside_webui", "launch"):
        assert "dialects" not in used, "nobody but the app knows the dialects"


@pytest.mark.parametrize(
    "path",
    [p for p in sources() if not str(p.relative_to(PACKAGE)).startswith(STANDALONE)],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_the_shared_part_loads_nothing_heavy(path: Path) -> None:
    loaded = {name.split(".")[0] for name in imports(path, everywhere=False)}
    assert not loaded & set(HEAVY)


def test_scripts_holds_only_folders() -> None:
    """A webui that clones this repository as an extension imports ``scripts/*.py``."""
    assert not list((PACKAGE.parents[2] / "scripts").glob("*.py"))
