"""What launch_config/ tells a platform to start is what the launcher understands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from sd_cloud.launch import LAST_ANSWERS_SECONDS
from sd_cloud.service import CANCEL_GRACE_SECONDS
from sd_cloud.settings import Settings
from sd_cloud.settings_from_flags import settings_from

CONFIG = Path(__file__).resolve().parents[2] / "launch_config"


def entrypoint() -> list[str]:
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", (CONFIG / "Dockerfile").read_text(), re.M)
    command: list[str] = json.loads(line)
    return command[command.index("launch") + 1 :]


def seconds(text: str) -> float:
    return float(re.fullmatch(r"(\d+)s?", text)[1])  # type: ignore[index]


def assert_time_to_drain(settings: Settings, grace_seconds: float) -> None:
    assert settings.drain_seconds + CANCEL_GRACE_SECONDS + LAST_ANSWERS_SECONDS <= grace_seconds


@pytest.mark.parametrize("name", ["standard", "api"])
def test_the_eas_services_start_us_with_the_guides_own_flags(name: str) -> None:
    container = json.loads((CONFIG / "eas" / f"{name}.json").read_text())["containers"][0]
    script = shlex.split(container["script"])
    settings = settings_from(script[script.index("/code/sd-cloud-api/scripts/launch/webui.sh") + 1 :], {})
    assert settings.port == container["port"] and settings.listen
    assert settings.data_dir == Path("/code/stable-diffusion-webui/data")
    assert settings.no_auth  # EAS' gateway checks the token
    assert not settings.state_dir.is_relative_to(settings.data_dir)


def test_the_image_starts_the_service_for_callers_from_outside() -> None:
    settings = settings_from(entrypoint(), {"SD_CLOUD_DATA_DIR": "/data"})
    assert settings.listen and settings.port == 8000


def test_compose_gives_the_service_time_to_drain() -> None:
    service = yaml.safe_load((CONFIG / "compose.yaml").read_text())["services"]["sd-cloud"]
    settings = settings_from([*entrypoint(), *service["command"]], {})
    assert_time_to_drain(settings, seconds(service["stop_grace_period"]))


def test_kubernetes_gives_the_service_time_to_drain_and_its_token() -> None:
    documents = list(yaml.safe_load_all((CONFIG / "kubernetes.yaml").read_text()))
    pod = documents[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    environ = {one["name"]: "a token" for one in container["env"]}
    settings = settings_from([*entrypoint(), *container["args"]], environ)
    assert settings.tokens == ("a token",)
    assert settings.port == container["ports"][0]["containerPort"]
    assert_time_to_drain(settings, pod["terminationGracePeriodSeconds"])
    assert pod["enableServiceLinks"] is False


def test_systemd_gives_the_service_time_to_drain_and_leaves_its_engine_alone() -> None:
    unit = (CONFIG / "sd-cloud.service").read_text()
    values = dict(
        line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#")
    )
    settings = settings_from(shlex.split(values["ExecStart"])[2:], {})
    assert values["KillMode"] == "mixed"
    assert_time_to_drain(settings, seconds(values["TimeoutStopSec"]))
