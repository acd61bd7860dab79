from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sd_cloud.command_line import parse
from sd_cloud.flags import FLAGS, OURS
from sd_cloud.flags_of_the_webui import EXTENSIONS, WEBUI
from sd_cloud.settings import Settings, settings_below
from sd_cloud.settings_from_flags import SettingsError, default_state_dir, settings_from, settings_of

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = ROOT / "extensions" / "sd-cloud-api"
REFERENCE = ROOT.parent / "shared" / "reference" / "webui-1.10.1" / "cmd-flags.json"

GUIDE_STANDARD = (
    "--listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model "
    "--skip-prepare-environment --api --filebrowser --data-dir=/code/stable-diffusion-webui/data"
)
GUIDE_API = (
    "--listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model "
    "--skip-prepare-environment --api-log --time-log --nowebui --data-dir=/code/stable-diffusion-webui/data"
)


def preload() -> Callable[[argparse.ArgumentParser], None]:
    spec = importlib.util.spec_from_file_location("our_preload", EXTENSION / "preload.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.preload  # type: ignore[no-any-return]


def refusal(
    capsys: pytest.CaptureFixture[str], argv: list[str], environ: dict[str, str] | None = None
) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(argv, environ or {})
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_every_flag_is_declared_once() -> None:
    names = [flag.name for flag in FLAGS]
    assert len(names) == len(set(names))
    assert len({flag.variable for flag in FLAGS}) == len(names)


@pytest.mark.skipif(
    not REFERENCE.exists(), reason="needs ../shared/reference, which is not beside this checkout"
)
def test_the_webuis_and_its_built_in_extensions_flags_are_exactly_those_of_a_real_one() -> None:
    real = set(json.loads(REFERENCE.read_text()))
    ours_to_know = {flag.dest for flag in (*WEBUI, *EXTENSIONS) if flag.origin != "controlnet extension"}
    assert ours_to_know == real
    assert not {flag.dest for flag in OURS} & real


@pytest.mark.parametrize("line", [GUIDE_STANDARD, GUIDE_API])
def test_the_guides_command_lines_are_read_as_they_stand(line: str) -> None:
    settings = settings_from(line.split(), {})
    assert (settings.host, settings.port, settings.listen) == ("0.0.0.0", 8000, True)
    assert settings.data_dir == Path("/code/stable-diffusion-webui/data")
    assert settings.no_hashing and settings.api
    assert settings.nowebui == ("--nowebui" in line)
    assert settings.filebrowser == ("--filebrowser" in line)


def test_every_flag_of_the_guide_is_there() -> None:
    guide = """--blade --xformers --filebrowser --data-dir --api --nowebui --api-log --time-log --listen
    --port
    --enable-nsfw-censor --always-hide-tabs --min-ram-reserved --sd-dynamic-cache --lora-dir --vae-dir
    --gfpgan-dir --embeddings-dir --hypernetwork-dir --root-extensions --no-hashing --no-download-sd-model
    --skip-version-check --skip-prepare-environment"""
    assert set(guide.split()) <= {flag.name for flag in FLAGS}


def test_an_unknown_flag_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no flag --lisen; did you mean --listen?" in refusal(capsys, ["--lisen"])
    assert "no flag --image-link-alow; did you mean --image-link-allow?" in refusal(
        capsys, ["--image-link-alow=10.0.0.0/8"]
    )
    assert "no flag --qqqq" in refusal(capsys, ["--qqqq"])
    assert "'stray'" in refusal(capsys, ["--api", "stray"])


def test_a_flag_is_not_understood_by_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data-dir" in refusal(capsys, ["--data", "x"])


@pytest.mark.parametrize(
    ("argv", "fact"),
    [
        (["--port", "high"], "whole number"),
        (["--port", "-1"], "below zero"),
        (["--drain-seconds", "nan"], "below zero"),
        (["--precision", "double"], "full, half, autocast"),
        (["--port"], "expected one argument"),
    ],
)
def test_a_value_that_cannot_be_read_names_its_flag(
    capsys: pytest.CaptureFixture[str], argv: list[str], fact: str
) -> None:
    said = refusal(capsys, argv)
    assert argv[0] in said and fact in said


def test_flags_without_meaning_or_effect_are_said_only_when_given() -> None:
    assert parse([], {}).notes == ()
    notes = parse(["--skip-version-check", "--blade", "--api"], {}).notes
    assert [note.split()[0] for note in sorted(notes)] == ["--blade", "--skip-version-check"]
    assert any("no effect yet" in note for note in notes if note.startswith("--blade"))


def test_the_environment_mirrors_flags_and_the_command_line_wins() -> None:
    environ = {
        "SD_CLOUD_PORT": "1234",
        "SD_CLOUD_LISTEN": "1",
        "SD_CLOUD_TOKEN": "a, b",
        "SD_CLOUD_NO_AUTH": "0",
    }
    settings = settings_from([], environ)
    assert (settings.port, settings.listen, settings.tokens, settings.no_auth) == (
        1234,
        True,
        ("a", "b"),
        False,
    )
    assert settings_from(["--port", "99", "--token", "c"], environ).port == 99
    assert settings_from(["--port", "99", "--token", "c"], environ).tokens == ("c",)


def test_a_bad_environment_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "SD_CLOUD_PORT" in refusal(capsys, [], {"SD_CLOUD_PORT": "tcp://10.0.0.1:80"})
    assert "SD_CLOUD_LISTEN" in refusal(capsys, [], {"SD_CLOUD_LISTEN": "maybe"})
    (note,) = parse([], {"SD_CLOUD_TOKN": "x"}).notes
    assert "SD_CLOUD_TOKEN?" in note


def test_a_list_may_be_repeated_spaced_or_comma_separated() -> None:
    forms = (
        ["--oss-allow", "aaa,bbb/x"],
        ["--oss-allow", "aaa", "bbb/x"],
        ["--oss-allow=aaa", "--oss-allow=bbb/x"],
    )
    for argv in forms:
        assert settings_from(argv, {}).oss.allow == ("aaa", "bbb/x")


def test_the_defaults_are_those_of_settings(tmp_path: Path) -> None:
    plain = settings_below(tmp_path)
    parsed = settings_from(["--data-dir", str(tmp_path), "--state-dir", str(tmp_path / "state")], {})
    skip = {"flags"}
    for name in Settings.__dataclass_fields__:
        if name not in skip:
            assert getattr(parsed, name) == getattr(plain, name), name


def test_units_are_converted() -> None:
    fetch = settings_from(["--image-link-max-mib", "0.5", "--image-max-megapixels", "2"], {}).fetch
    assert (fetch.limit_bytes, fetch.limit_pixels) == (512 * 1024, 2_000_000)


def test_flags_add_folders_of_models_or_replace_them_as_in_the_webui() -> None:
    flags = {
        "ckpt-dir": "checkpoints",
        "vae-dir": "vaes",
        "controlnet-dir": "controlnets",
        "lora-dir": "loras",
        "lyco-dir-backcompat": "loras",
        "embeddings-dir": "embeddings",
        "hypernetwork-dir": "hypernetworks",
        "gfpgan-models-path": "gfpgan",
        "codeformer-models-path": "codeformer",
        "controlnet-annotator-models-path": "annotators",
        "esrgan-models-path": "esrgan",
        "dat-models-path": "dat",
        "scunet-models-path": "scunet",
        "swinir-models-path": "swinir",
    }
    argv = [word for flag in flags for word in (f"--{flag}", f"/{flag}")]
    folders = settings_from(["--data-dir", "/d", *argv], {}).folders
    expected = {
        "checkpoints": ("/ckpt-dir", "/d/models/Stable-diffusion"),
        "vaes": ("/d/models/VAE", "/vae-dir"),
        "controlnets": ("/d/models/ControlNet", "/controlnet-dir"),
        "loras": ("/d/models/Lora", "/lora-dir", "/lyco-dir-backcompat"),
        "embeddings": ("/embeddings-dir",),
        "hypernetworks": ("/hypernetwork-dir",),
        "gfpgan": ("/gfpgan-models-path",),
        "codeformer": ("/codeformer-models-path",),
        "annotators": ("/controlnet-annotator-models-path",),
    }
    assert {name: tuple(map(str, getattr(folders, name))) for name in expected} == expected
    for kind, name in (("dat", "DAT"), ("scunet", "ScuNET"), ("swinir", "SwinIR")):
        assert getattr(folders, kind) == (Path(f"/{kind}-models-path"), Path(f"/d/models/{name}"))
    assert folders.esrgan[0] == Path("/esrgan-models-path")
    plain = settings_from(["--data-dir", "/d", "--models-dir", "/m"], {}).folders
    assert plain.vaes == (Path("/m/VAE"),)
    assert plain.loras == (Path("/m/Lora"), Path("/m/LyCORIS"))


def test_the_state_dir_is_the_same_for_the_same_data_dir_and_another_for_another() -> None:
    environ = {"XDG_STATE_HOME": "/s"}
    first = default_state_dir(Path("/data/a"), environ)
    assert first == settings_from(["--data-dir", "/data/../data/a"], environ).state_dir
    assert first != default_state_dir(Path("/other/a"), environ)
    assert first.is_relative_to("/s/sd-cloud")


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["--api-auth", "nocolon"], "--api-auth"),
        (["--gradio-auth", "user:"], "--gradio-auth"),
        (["--gradio-auth-path", "/nowhere/at/all"], "--gradio-auth-path"),
        (["--no-auth", "--token", "t"], "--no-auth"),
        (["--tls-keyfile", "k.pem"], "--tls-keyfile"),
        (["--public-url", "example.com"], "--public-url"),
        (["--image-link-allow", "10.0.0.0/99"], "--image-link-allow"),
        (["--image-types", "svg"], "--image-types"),
        (["--oss-allow", "UPPER"], "--oss-allow"),
        (["--oss-mount", "/data"], "--oss-mount"),
        (["--port", "70000"], "--port"),
        (["--cors-allow-origins-regex", "("], "--cors-allow-origins-regex"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_flag(argv: list[str], flag: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_from(argv, {})
    assert refused.value.flag == flag
    assert str(refused.value).startswith(flag + ":")


def test_no_secret_is_in_the_flags_that_the_api_shows_nor_in_the_settings_text() -> None:
    argv = ["--token", "s3cret", "--api-auth", "u:s3cret", "--gradio-auth", "g:s3cret"]
    settings = settings_from(argv, {})
    assert "s3cret" not in repr(settings.flags)
    assert "s3cret" not in repr(settings)


def test_the_webuis_own_values_make_settings() -> None:
    """What `vars(shared.cmd_opts)` holds: text where our parser has lists, no flags of others."""
    settings = settings_of(
        {"data_dir": "/webui", "port": "7861", "cors_allow_origins": "http://a,http://b"}, {}
    )
    assert settings.port == 7861
    assert settings.cors_allow_origins == ("http://a", "http://b")


def test_preload_adds_ours_and_nothing_that_anybody_else_defines() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--token")  # another extension was first
    preload()(parser)
    added = {option for action in parser._actions for option in action.option_strings} - {
        "-h",
        "--help",
        "--token",
    }
    assert added == {flag.name for flag in OURS} - {"--token"}
    # The webui, its built-in extensions and ControlNet define theirs after us: no conflict.
    for flag in (*WEBUI, *EXTENSIONS):
        parser.add_argument(flag.name)
    parsed = parser.parse_args(["--time-log", "--image-link-allow", "10.0.0.0/8,host", "--lora-dir", "x"])
    assert parsed.time_log and parsed.image_link_allow == ["10.0.0.0/8", "host"]


def test_preload_takes_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_CLOUD_QUEUE_LIMIT", "7")
    parser = argparse.ArgumentParser()
    preload()(parser)
    assert parser.parse_args([]).queue_limit == 7
    assert parser.parse_args(["--queue-limit", "8"]).queue_limit == 8


def test_preload_imports_nothing_heavy() -> None:
    code = (
        "import argparse, runpy, sys; before = set(sys.modules);"
        f"runpy.run_path({str(EXTENSION / 'preload.py')!r})['preload'](argparse.ArgumentParser());"
        "print(' '.join(sorted(m for m in set(sys.modules) - before if '.' not in m)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "sd_cloud" in loaded.split()
    assert not set(loaded.split()) & {"torch", "fastapi", "pydantic", "PIL", "numpy", "gradio", "sqlalchemy"}


def test_help_says_something_about_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"], {})
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in FLAGS:
        assert re.search(rf"{flag.name}\b", shown)
        assert flag.help


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_table_of_flags_is_the_declared_one(readme: str) -> None:
    spec = importlib.util.spec_from_file_location("flag_table", ROOT / "scripts" / "launch" / "flag_table.py")
    assert spec and spec.loader
    flag_table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flag_table)
    text = (ROOT / readme).read_text(encoding="utf-8")
    untold = [flag.name for flag in flag_table.listed() if flag.name not in flag_table.CHINESE]
    assert not untold, "add a line to scripts/launch/flags_zh.json"
    assert flag_table.with_table(text, readme) == text, "run scripts/launch/flag_table.py"


def test_options_are_frozen_by_name_or_as_a_whole() -> None:
    named = settings_from(["--freeze-specific-settings", "jpeg_quality, randn_source"], {})
    assert named.frozen_options == ("jpeg_quality", "randn_source")
    assert settings_from(["--freeze-settings"], {}).frozen_options == ("*",)


def test_options_are_frozen_by_section_and_styles_files_may_be_patterns(tmp_path: Path) -> None:
    command = ["--freeze-settings-in-sections", "sd, interrogate", "--styles-file", str(tmp_path / "*.csv")]
    found = settings_from([*command, "--styles-file", "~/mine.csv", "--hide-ui-dir-config"], {})
    assert found.frozen_sections == ("sd", "interrogate")
    assert found.styles_patterns == (str(tmp_path / "*.csv"), str(Path("~/mine.csv").expanduser()))
    assert found.paths_frozen
    assert settings_from(["--data-dir", str(tmp_path)], {}).styles_patterns == (str(tmp_path / "styles.csv"),)


def test_a_vae_for_everything_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--vae-path: there is no file"):
        settings_from(["--vae-path", str(tmp_path / "gone.safetensors")], {})
