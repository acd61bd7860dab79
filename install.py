"""Set up and run sd-cloud-api. Plain standard library; see `python3 install.py --help`.

Everything goes into `.venv` beside this file; the system's Python is only asked to make it. Run
by a webui that has this repository in its `extensions/`, it puts the extension proper there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
EXTENSION = ROOT / "extensions" / "sd-cloud-api"
NEEDED_DISK_GIB = 5

USAGE = """
commands:
  demo              set up, start the service, send the EAS guide's txt2img request, show its
                    answer and where the pictures are, stop
  test [-- ARGS]    set up what the tests need and run them (ARGS go to pytest);
                    `test --stack webui`: those of the shared part on the webui 1.10.1's packages
  launch -- FLAGS   set up and serve: launch -- --listen --port 8000 --api --data-dir ./data
  webui PATH        put the extension into a stable-diffusion-webui at PATH
  setup             only set up

--gpu, before the command, also installs xformers and torch's CUDA build.
Where packages come from is pip's own configuration (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf).
"""


class Problem(Exception):
    """What failed, and what to do about it."""


@dataclass(frozen=True)
class Needed:
    """A program that some tests use, its Debian package, and the tests that skip without it."""

    program: str
    package: str
    tests: str


@dataclass(frozen=True)
class Environment:
    """A folder with a Python and packages. ``pythons``: the versions to make it from, best first."""

    venv: Path
    pins: tuple[str, ...]
    pythons: tuple[str, ...] = ("3.11",)
    with_torch: bool = True
    gpu: bool = False

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.venv / "sd-cloud-installed"

    @property
    def wanted(self) -> str:
        """A digest of all that decides what is in it: it changes when a pin, or its place, does."""
        digest = hashlib.sha256(str(self.venv).encode())
        for name in self.pins:
            digest.update((ROOT / name).read_bytes())
        return f"{'+'.join(self.pins)}:{digest.hexdigest()[:24]}"

    @property
    def is_there(self) -> bool:
        made = self.stamp.read_text().split("\n") if self.stamp.exists() else []
        return self.python.exists() and self.wanted in made


def environment(*, tests: bool = False, gpu: bool = False) -> Environment:
    pins = ["constraints.txt", *(["constraints-test.txt"] if tests else [])]
    return Environment(ROOT / ".venv", (*pins, *(["constraints-gpu.txt"] if gpu else [])), gpu=gpu)


#: The packages of a real webui 1.10.1, for the tests of what runs inside one.
WEBUI_STACK = Environment(
    ROOT / ".venv-webui", ("constraints-webui.txt",), ("3.10", "3.11"), with_torch=False
)
#: Tests of what never runs there.
STANDALONE_TESTS = (
    "tests/browser",
    "tests/conformance",
    "tests/demo",
    "tests/dialects/test_sdapi*",
    "tests/e2e",
    "tests/engines/diffusion",
    "tests/host",
    "tests/launch",
    "tests/safety",
    "tests/test_install.py",
)

FOR_TESTS = (
    Needed("chromium", "chromium", "tests/browser"),
    Needed("nginx", "nginx", "tests/browser"),
    Needed("initdb", "postgresql", "tests/store"),
)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="install.py",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gpu", action="store_true", help="for an NVIDIA GPU")
    parser.add_argument("command", nargs="?", choices=("demo", "test", "launch", "webui", "setup"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(list(argv))
    try:
        if given.command is None:
            return bare(parser)
        return command(given.command, given.rest, gpu=given.gpu)
    except Problem as problem:
        print(f"\ninstall.py: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninstall.py: stopped; the next call goes on where this one was", file=sys.stderr)
        return 130


def command(name: str, rest: list[str], *, gpu: bool) -> int:
    if name == "webui":
        return webui(rest)
    if name == "test":
        return test(rest, gpu=gpu)
    rest = without_dashes(rest)
    if name in ("demo", "setup") and rest:
        raise Problem(f"{name} takes no arguments, but got: {' '.join(rest)}")
    python = set_up(environment(gpu=gpu))
    if name == "demo":
        return run([python, ROOT / "scripts" / "launch" / "demo.py"])
    if name == "launch":
        # Replaces this process: signals of a supervisor reach the service itself.
        os.execv(python, [str(python), "-m", "sd_cloud", "launch", *rest])
    return 0


def test(rest: list[str], *, gpu: bool) -> int:
    if rest[:1] == ["--stack"]:
        if rest[1:2] != ["webui"]:
            raise Problem("the only other stack is: test --stack webui")
        python = set_up(WEBUI_STACK)
        left_out = [f"--ignore-glob={ROOT / pattern}" for pattern in STANDALONE_TESTS]
        paths = {**os.environ, "PYTHONPATH": str(EXTENSION)}
        # That stack's own packages warn about each other.
        warnings = ["-W", "ignore::PendingDeprecationWarning"]
        return run([python, "-m", "pytest", *warnings, *left_out, *without_dashes(rest[2:])], paths)
    python = set_up(environment(tests=True, gpu=gpu))
    debian_packages_for_tests()
    return run([python, "-m", "pytest", *without_dashes(rest)])


def without_dashes(rest: list[str]) -> list[str]:
    return rest[1:] if rest[:1] == ["--"] else rest


# -- environments ------------------------------------------------------------------------------


def set_up(wanted: Environment) -> Path:
    """Make or complete an environment; its Python. At once when an earlier call has made all of it."""
    if wanted.is_there:
        return wanted.python
    with only_one_at_a_time():
        if not wanted.is_there:  # else another call made it while this one waited
            steps(wanted)
            already = set(wanted.stamp.read_text().splitlines()) if wanted.stamp.exists() else set()
            wanted.stamp.write_text("\n".join(sorted(already | {wanted.wanted})) + "\n")
            say("ready")
    return wanted.python


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    lock = ROOT / ".cache" / "install.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another install.py is setting this up; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def steps(wanted: Environment) -> None:
    make_venv(wanted)
    if wanted.with_torch:
        lines = (ROOT / wanted.pins[0]).read_text().splitlines()
        torch = next(line for line in lines if line.startswith("torch=="))
        # "==2.13.0" also takes "2.13.0+cpu", and prefers it where an index has it; "===" does not.
        say(
            f"1/3 {torch}"
            + (" with CUDA" if wanted.gpu else ", the CPU build where the package index has it")
        )
        pip(wanted, "install", torch.replace("==", "===") if wanted.gpu else torch)
    say("2/3 the other packages, at the pinned versions")
    pip(wanted, "install", *(part for name in wanted.pins for part in ("-r", str(ROOT / name))))
    if wanted.with_torch:
        say("3/3 sd-cloud-api itself")
        pip(wanted, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def make_venv(wanted: Environment) -> None:
    if wanted.python.exists() and quiet(wanted.python, "-c", "import pip"):
        return
    free_gib = shutil.disk_usage(ROOT).free / 1024**3
    if free_gib < NEEDED_DISK_GIB:
        raise Problem(f"{ROOT} has {free_gib:.1f} GiB free, about {NEEDED_DISK_GIB} are needed; make room")
    python = find_python(wanted.pythons)
    if not quiet(python, "-c", "import ensurepip, venv"):
        add_venv_package(python)
    say(f"0/3 a Python environment in {wanted.venv}")
    if run([python, "-m", "venv", "--clear", wanted.venv]) != 0:
        raise Problem(f"{python} could not make {wanted.venv}; its message is above")


def find_python(versions: Sequence[str]) -> Path:
    """A Python of a version that the pins were tested on: this one, or one on the PATH."""
    for version in versions:
        for candidate in (sys.executable, shutil.which(f"python{version}")):
            check = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != {version!r})"
            if candidate and quiet(candidate, "-c", check):
                return Path(candidate)
    name = f"python{versions[-1]}"
    raise Problem(
        f"this needs Python {' or '.join(versions)}, and this is {sys.version.split()[0]}; install it "
        f"(Debian 12: apt-get install python3-venv; Ubuntu: apt-get install {name} {name}-venv) "
        "and call install.py again"
    )


def add_venv_package(python: Path) -> None:
    """Debian's Python comes without what makes environments; the package of that is its own."""
    asked = [str(python), "-c", "import sys; print('python%d.%d-venv' % sys.version_info[:2])"]
    package = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not apt_get(package) or not quiet(python, "-c", "import ensurepip, venv"):
        raise Problem(f"{python} can't make environments; run: sudo apt-get install {package}")


def pip(wanted: Environment, *arguments: str) -> None:
    code = run([wanted.python, "-m", "pip", "--disable-pip-version-check", *arguments])
    if code != 0:
        raise Problem(
            f"`pip {' '.join(arguments)}` failed (exit {code}); pip's own message is above.\n"
            "  No connection: check the network, or point PIP_INDEX_URL at a mirror.\n"
            "  No matching version: the mirror lacks it; add one with PIP_EXTRA_INDEX_URL.\n"
            "  No space: about 5 GiB are needed here and some in $TMPDIR.\n"
            "Call install.py again afterwards; what is installed stays."
        )


def debian_packages_for_tests() -> None:
    for needed in FOR_TESTS:
        if not (ROOT / needed.tests).exists() or has_program(needed.program):
            continue
        if not apt_get(needed.package):
            say(f"{needed.tests} will skip: there is no {needed.program} (apt-get install {needed.package})")


def has_program(name: str) -> bool:
    places = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    return bool(shutil.which(name, path=places) or list(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))


def apt_get(package: str) -> bool:
    """Install a Debian package if this user can. False: not installed."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    say(f"installing Debian's {package}")
    # At runlevel 1 Debian starts no service that a package brings: the tests start their own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run(["apt-get", "update", "-qq"], environment)
    return run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], environment) == 0


# -- inside a webui ----------------------------------------------------------------------------


def webui(rest: Sequence[str]) -> int:
    if len(rest) != 1:
        raise Problem("give the folder of your stable-diffusion-webui: install.py webui PATH")
    folder = Path(rest[0]).expanduser().resolve()
    if not is_webui(folder):
        raise Problem(
            f"{folder} is not a stable-diffusion-webui: it has no launch.py, modules/ and extensions/"
        )
    target = folder / "extensions" / "sd-cloud-api"
    put_extension(target)
    say(f"the extension is in {target}; start the webui as always. To remove it, delete that folder")
    return 0


def bare(parser: argparse.ArgumentParser) -> int:
    """No command: a webui that has this repository in its extensions/ runs it like this."""
    if ROOT.parent.name != "extensions" or not (is_webui(ROOT.parent.parent) or called_by_a_webui()):
        parser.print_help()
        return 2
    # The clone itself is usually called sd-cloud-api.
    target = ROOT.parent / ("sd-cloud-api" if ROOT.name != "sd-cloud-api" else "sd-cloud-api-extension")
    put_extension(target)
    say(f"the extension proper is now in {target}; the webui loads it from there")
    # The webui made its list of installers before this one was there.
    return run([sys.executable, target / "install.py"])


def called_by_a_webui() -> bool:
    """With its own --data-dir, a webui's extensions are elsewhere; its installers find it on their path."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return any(place and is_webui(Path(place)) for place in places)


def is_webui(folder: Path) -> bool:
    return all((folder / part).exists() for part in ("launch.py", "modules", "extensions"))


def put_extension(target: Path) -> None:
    """Copy the extension, replacing an older copy of ours and nothing else."""
    if target.exists() and not (target / "sd_cloud" / "flags.py").exists():
        raise Problem(f"{target} exists and is not this extension; move it away first")
    fresh = target.with_name(f".{target.name}-new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(EXTENSION, fresh, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc"))
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)


# -- small things ------------------------------------------------------------------------------


def say(sentence: str) -> None:
    print(f"install.py: {sentence}", flush=True)


def run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> int:
    return subprocess.run([str(part) for part in command], env=environment, check=False).returncode


def quiet(*command: str | Path) -> bool:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
