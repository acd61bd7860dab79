"""A real server process with a painted engine: what a supervisor, a gateway and a person see."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from sd_cloud.launch import SILENT_MILLISECONDS, _config, _listen
from sd_cloud.settings import settings_below
from tests.e2e.serving import url_said

#: Of what is waited for, on a machine that is busy with something else.
WAIT_SECONDS = 240
SERVE = Path(__file__).with_name("serve_paint.py")


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    log: Path
    out: Path

    def post(self, body: dict[str, object], **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/sdapi/v1/txt2img", json=body, headers=headers, timeout=60, trust_env=False
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=60, trust_env=False)

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(WAIT_SECONDS)


@contextmanager
def service(folder: Path, *flags: str, step_seconds: float = 0.0) -> Iterator[Running]:
    """``step_seconds``: how long a step takes until there is a file ``quick`` in the folder."""
    log, out = folder / "log", folder / "out"
    own = [
        "--port",
        "0",
        "--data-dir",
        str(folder / "data"),
        "--state-dir",
        str(folder / "state"),
        "--nowebui",
    ]
    with log.open("w") as err, out.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, str(SERVE), *own, *flags],
            stderr=err,
            stdout=told,
            text=True,
            env={
                "PAINT_STEP_SECONDS": str(step_seconds),
                "PAINT_QUICK": str(folder / "quick"),
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # the checkout under test
            },
        )
    try:
        yield Running(process, url_said(process, log), log, out)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_sigterm_lets_the_running_job_finish_and_exits_with_zero(tmp_path: Path) -> None:
    with service(tmp_path, "--drain-seconds", "30", step_seconds=0.2) as running:
        answers: list[httpx.Response] = []
        asked = threading.Thread(target=lambda: answers.append(running.post({"steps": 150})))
        asked.start()
        _until_running(running)
        running.process.send_signal(signal.SIGTERM)
        _until_stopping(running)
        (tmp_path / "quick").touch()
        assert running.process.wait(WAIT_SECONDS) == 0
        asked.join()
    assert answers[0].status_code == 200 and answers[0].json()["images"]


def test_a_job_that_outlasts_drain_seconds_is_cancelled_and_said_so(tmp_path: Path) -> None:
    with service(tmp_path, "--drain-seconds", "0.2", step_seconds=0.2) as running:
        answers: list[httpx.Response] = []
        asked = threading.Thread(target=lambda: answers.append(running.post({"steps": 150})))
        asked.start()
        _until_running(running)
        assert running.stop() == 0
        asked.join()
    assert answers[0].status_code == 409 and "cancel" in answers[0].text


def _until_running(running: Running) -> None:
    while running.get("/sdapi/v1/progress").json()["state"]["sampling_steps"] == 0:
        time.sleep(0.05)


def _until_stopping(running: Running) -> None:
    while "stopping" not in running.log.read_text():
        time.sleep(0.05)


def test_ctrl_c_is_an_orderly_stop_too(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        assert running.get("/healthz").status_code == 200
        assert running.stop(signal.SIGINT) == 0
    assert "Traceback" not in running.log.read_text()


def test_a_second_ctrl_c_cancels_the_running_job_and_answers_its_caller(tmp_path: Path) -> None:
    with service(tmp_path, step_seconds=0.2) as running:
        answers: list[httpx.Response] = []
        asked = threading.Thread(target=lambda: answers.append(running.post({"steps": 150})))
        asked.start()
        _until_running(running)
        running.process.send_signal(signal.SIGINT)
        _until_stopping(running)
        assert not answers, "the first one waits for the job"
        assert running.stop(signal.SIGINT) == 0
        asked.join()
    assert answers[0].status_code == 409 and "cancel" in answers[0].text
    assert "Traceback" not in running.log.read_text()


def test_listen_prints_its_token_once_with_a_line_that_works(tmp_path: Path) -> None:
    with service(tmp_path, "--listen") as running:
        told = running.out.read_text()
        address, token = re.findall(r"curl (\S+) --header 'Authorization: (\S+)'", told)[0]
        assert token not in running.log.read_text()
        elsewhere = {"X-Forwarded-For": "10.0.0.1"}
        assert running.get("/healthz", **elsewhere).status_code == 200
        assert running.get("/sdapi/v1/sd-models", **elsewhere).status_code == 401
        assert running.get("/sdapi/v1/sd-models").status_code == 200  # this machine
        path = address.removeprefix(running.url)
        assert running.get(path, Authorization=token, **elsewhere).status_code == 200
        assert running.stop() == 0
    with service(tmp_path, "--listen") as again:
        assert again.out.read_text() == ""
        assert again.get("/sdapi/v1/sd-models", Authorization=token, **elsewhere).status_code == 200


def test_a_forwarded_address_does_not_make_a_caller_local(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
            assert running.get("/sdapi/v1/sd-models", **{name: "127.0.0.1"}).status_code == 401
        assert running.get("/sdapi/v1/sd-models", Host="evil.example.com").status_code == 401


def test_the_logs_tell_route_status_seconds_and_job_and_never_a_token(tmp_path: Path) -> None:
    with service(tmp_path, "--time-log", "--api-log", "--token", "s3cret") as running:
        body = {"alwayson_scripts": {"id_task": "7"}, "n_iter": 1}
        assert running.post(body, Authorization="s3cret").status_code == 200
        assert running.get("/sdapi/v1/a%0Ab").status_code == 401
        link = running.post(body, Authorization="s3cret").json()["parameters"]["image_links"][0]
        path = "/" + link.split("/", 3)[3]
        assert running.get(path).status_code == 200
        assert running.stop() == 0
    log = running.log.read_text()
    assert re.search(r"time_log: POST /sdapi/v1/txt2img 200 \d+\.\d{3} s job=[0-9a-f]{32}", log)
    assert re.search(r"time_log: GET /sdapi/v1/a\\nb 401 \d+\.\d{3} s job=-", log)
    assert re.search(r"api_log: 127\.0\.0\.1 POST /sdapi/v1/txt2img 200 ", log)
    assert "GET /sd-cloud/v1/files/{token}/{name} 200" in log
    assert path.split("/")[4] not in log and "s3cret" not in log


def test_flags_without_effect_are_said_at_start(tmp_path: Path) -> None:
    with service(tmp_path, "--blade", "--skip-version-check") as running:
        assert running.stop() == 0
    log = running.log.read_text()
    assert "--blade has no effect yet" in log and "--skip-version-check has no meaning" in log


def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = command("launch", "--port", port, "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert f"can't serve on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr


def test_a_config_that_cannot_be_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{broken")
    done = command("launch", "--port", "0", "--data-dir", str(tmp_path), "--state-dir", str(tmp_path / "s"))
    assert done.returncode == 1
    assert "config.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--data-dir", "{file}"), "--data-dir: {file} can't be used"),
        (("--state-dir", "{file}"), "--state-dir: {file} can't be used"),
        (
            ("--tls-certfile", "{file}x", "--tls-keyfile", "{file}"),
            "--tls-certfile: there is no file {file}x",
        ),
        (("--tls-certfile", "{file}", "--tls-keyfile", "{file}"), "are no certificate and its key"),
    ],
)
def test_a_folder_or_file_that_cannot_be_used_is_told_in_a_sentence(
    tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    file = tmp_path / "file"
    file.write_text("neither a folder nor a certificate")
    given = [one.format(file=file) for one in flags]
    own = ["--port", "0", "--nowebui", "--data-dir", str(tmp_path / "d"), "--state-dir", str(tmp_path / "s")]
    done = command("launch", *own, *given)
    assert done.returncode == 1
    assert sentence.format(file=file) in done.stderr and "Traceback" not in done.stderr


def test_answers_on_a_kept_connection_do_not_wait_for_the_other_sides_acknowledgement(tmp_path: Path) -> None:
    """asyncio sets TCP_NODELAY on what is accepted here, and only for this protocol number."""
    with _listen(settings_below(tmp_path, port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_watching_consumer_that_is_busy_is_not_taken_for_dead_and_one_that_is_gone_is_noticed(
    tmp_path: Path,
) -> None:
    """The EAS client reads nothing, pings included, while its caller works on a message."""
    settings = settings_below(tmp_path, port=0)
    config = _config(FastAPI(), settings)
    assert config.ws_ping_timeout is None and config.ws_ping_interval
    with _listen(settings) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENT_MILLISECONDS


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("launch", "--lisen"), "did you mean --listen?"),
        (("launch", "--api-auth", "x"), "--api-auth: an entry is not user:password"),
        (("lunch",), "no command 'lunch'"),
        ((), "usage: sd-cloud COMMAND"),
    ],
)
def test_a_command_line_that_cannot_be_used_exits_with_two_and_a_sentence(
    arguments: tuple[str, ...], sentence: str
) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sd_cloud", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
