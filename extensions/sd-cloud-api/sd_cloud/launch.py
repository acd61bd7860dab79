"""``sd-cloud launch``: from flags to a served app, and from SIGTERM to exit code 0."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from sd_cloud.access import made_token
from sd_cloud.command_line import parse
from sd_cloud.errors import ServiceError
from sd_cloud.request_log import RequestLog
from sd_cloud.service import CANCEL_GRACE_SECONDS
from sd_cloud.settings import Settings
from sd_cloud.settings_from_flags import SettingsError, settings_of

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("sd_cloud")

#: What is left to connections once every job is over or cancelled.
LAST_ANSWERS_SECONDS = 10.0
#: A peer whose kernel acknowledges nothing for this long is gone.
SILENT_MILLISECONDS = 120_000


def launch(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT. The exit code: 0 after an orderly stop, 2 for bad flags."""
    given = parse(argv, environ)
    try:
        settings = settings_of(given.values, environ)
    except SettingsError as error:
        print(f"sd-cloud: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=settings.loglevel, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for talkative in ("httpx", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    for note in given.notes:
        log.warning("%s", note)
    stop = _StopSignals()
    try:
        listener = _listen(settings)
        settings = replace(settings, port=listener.getsockname()[1])  # --port 0 takes a free one
        _check_certificate(settings)
        token, fresh = _token(settings)
        url = _url(settings)
        _tell_auth(settings, url, token if fresh else None)
        app = _build(settings)
    except OSError as error:
        print(f"sd-cloud: {error}", file=sys.stderr)
        return 1
    _serve(app, settings, listener, url, stop)
    return 0


def _token(settings: Settings) -> tuple[str | None, bool]:
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return made_token(settings)
    except OSError as error:
        raise OSError(
            f"--state-dir: {settings.state_dir} can't be used ({error.strerror}); "
            "give a local folder that this user may write to"
        ) from error


def _check_certificate(settings: Settings) -> None:
    """Raises OSError with a sentence; uvicorn would only find out once it serves."""
    if settings.tls_certfile is None or settings.tls_keyfile is None:
        return
    for flag, path in (("--tls-certfile", settings.tls_certfile), ("--tls-keyfile", settings.tls_keyfile)):
        if not path.is_file():
            raise OSError(f"{flag}: there is no file {path}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certfile, settings.tls_keyfile)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise OSError(
            f"--tls-certfile: {settings.tls_certfile} and {settings.tls_keyfile} are no certificate "
            f"and its key ({error})"
        ) from error


def _build(settings: Settings) -> FastAPI:
    from sd_cloud.host.app import build
    from sd_cloud.host.options import OptionsUnreadable

    try:
        return build(settings)
    except (OptionsUnreadable, ServiceError) as error:
        raise OSError(str(error)) from error


class _StopSignals:
    """SIGTERM and SIGINT from now on ask for an orderly stop, also before there is a server.

    uvicorn has handlers of its own while it serves; it then raises the signal again for these,
    so that an orderly stop exits with 0.
    """

    def __init__(self) -> None:
        self._asked = False
        self._server: uvicorn.Server | None = None
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self._ask)

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._server is not None:
            self._server.should_exit = True

    def stops(self, server: uvicorn.Server) -> None:
        self._server = server
        server.should_exit = self._asked


def _listen(settings: Settings) -> socket.socket:
    """Bound before anything slow starts: a port that is taken is known at once.

    Raises OSError with a sentence.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on what it accepts; without it, every answer
    # waits 40 ms for the caller's delayed acknowledgement of its headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is accepted inherits it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MILLISECONDS)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"can't serve on {settings.host}:{settings.port} ({error.strerror}); choose another --port"
        ) from error
    return listener


def _url(settings: Settings) -> str:
    scheme = "https" if settings.tls_certfile else "http"
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{settings.port}"


def _tell_auth(settings: Settings, url: str, fresh_token: str | None) -> None:
    if settings.no_auth:
        log.warning("--no-auth: every caller is let in; keep this behind a gateway that authenticates")
    elif settings.tokens or settings.api_auth:
        log.info("callers must send a token or a user and password")
    elif settings.exposed:
        log.info("callers from elsewhere must send the token in %s", settings.state_dir / "token")
    else:
        log.info("only callers on this machine are served; --listen opens it to others")
    if fresh_token:
        # Once, and to standard output: a log is kept and read by many.
        print(
            f"A token was made for callers from other machines; it is shown once and kept in "
            f"{settings.state_dir / 'token'}:\n"
            f"  curl {url}/sdapi/v1/sd-models --header 'Authorization: {fresh_token}'",
            flush=True,
        )


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    logged = RequestLog(app, by_time=settings.time_log, by_api=settings.api_log)
    return uvicorn.Config(
        logged if settings.time_log or settings.api_log else app,
        log_config=None,
        access_log=False,
        # X-Forwarded-For decides nothing here: who is local is a matter of trust (access/local.py).
        proxy_headers=False,
        server_header=False,
        # A consumer of the queue that works on a message answers no ping; its kernel acknowledges them.
        ws_ping_timeout=None,
        root_path=settings.subpath,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.drain_seconds + CANCEL_GRACE_SECONDS + LAST_ANSWERS_SECONDS),
        ssl_keyfile=settings.tls_keyfile,
        ssl_certfile=settings.tls_certfile,
    )


def _serve(app: FastAPI, settings: Settings, listener: socket.socket, url: str, stop: _StopSignals) -> None:
    server = _Server(_config(app, settings), app, settings.drain_seconds, url)
    stop.stops(server)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Drains the service while uvicorn waits for the answers that depend on it.

    A second signal ends the waiting: the running job is cancelled, its caller is answered, and the
    exit is an orderly one. A third Ctrl-C is uvicorn's own, which leaves everything as it is.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float, url: str) -> None:
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds
        self._url = url
        self._hurry: asyncio.Event | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("serving on %s", self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._hurry is not None and not self._hurry.is_set():
            self._hurry.set()
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hurry = asyncio.Event()
        log.info(
            "stopping: a running job has up to %g seconds; a second signal cancels it", self._drain_seconds
        )
        draining = asyncio.create_task(self._drain(self._hurry))
        await super().shutdown(sockets)
        await draining
        log.info("stopped")

    async def _drain(self, hurry: asyncio.Event) -> None:
        service = self._app.state.sd_cloud
        stopping = asyncio.create_task(service.stop(self._drain_seconds))
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not stopping.done():
            log.info("stopping now: the running job is cancelled")
            stopping.cancel()
            await service.stop()
