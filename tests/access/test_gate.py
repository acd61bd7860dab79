from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request, WebSocket
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sd_cloud import errors
from sd_cloud.access import ADMIN_ROUTES, Access, Caller, Gate
from sd_cloud.job import Job
from sd_cloud.settings import settings_below


class _AsAnn(Access):
    """Everybody is ann, a plain user."""

    async def caller(self, request: object) -> Caller:
        return Caller("ann")


def app(access: Access) -> FastAPI:
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> str:
        return "ok"

    @app.get("/whoami")
    def whoami(request: Request) -> str:
        caller: Caller = request.scope["sd_cloud.caller"]
        return caller.owner

    @app.get("/open/{name}")
    def signed(name: str) -> str:
        return name

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    app.add_middleware(Gate, access=access, open_paths=("/healthz", "/open/"))
    return app


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(app(Access(settings_below(tmp_path, tokens=("s3cret",))))) as client:
        yield client


def test_open_paths_need_no_caller_and_all_others_do(client: TestClient) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/open/a").status_code == 200
    assert client.get("/healthz/").status_code == 401
    assert client.get("/nowhere").status_code == 401
    refused = client.get("/whoami")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Basic"
    assert refused.json()["error"] == "unauthorized" and "Authorization" in refused.json()["detail"]


def test_the_route_finds_the_caller(client: TestClient) -> None:
    assert client.get("/whoami", headers={"Authorization": "s3cret"}).json() == "local"


def test_a_websocket_of_an_unknown_caller_is_closed(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws"):
        pass
    with client.websocket_connect("/ws", headers={"Authorization": "s3cret"}):
        pass


def test_every_admin_route_refuses_a_plain_user(tmp_path: Path) -> None:
    with TestClient(app(_AsAnn(settings_below(tmp_path)))) as client:
        for method, path in ADMIN_ROUTES:
            refused = client.request(method, path)
            assert refused.status_code == 403, path
            assert refused.json()["error"] == "not_allowed"
        assert client.get("/whoami").json() == "ann"


async def test_a_task_of_another_owner_does_not_exist_for_a_plain_user(tmp_path: Path) -> None:
    class Tasks:
        async def task(self, task_id: str) -> SimpleNamespace:
            return SimpleNamespace(job=Job("txt2img", {}, id=task_id, owner=task_id))

    ann = _AsAnn(settings_below(tmp_path))
    assert (await ann.owned_task(None, Tasks(), "ann")).job.owner == "ann"  # type: ignore[arg-type]
    with pytest.raises(errors.TaskNotFound):
        await ann.owned_task(None, Tasks(), "bob")  # type: ignore[arg-type]
