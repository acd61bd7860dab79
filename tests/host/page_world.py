"""The pages as a browser speaks to them: gradio's own queue protocol over HTTP."""

from __future__ import annotations

import json
from typing import Any

from tests.dialects.sdapi_world import Native


class Browser:
    """One browser session. Components are found by their ``elem_id``."""

    def __init__(self, world: Native, config: dict[str, Any], session: str) -> None:
        self._world = world
        self._config = config
        self._session = session

    @classmethod
    async def opened(cls, world: Native, session: str = "one") -> Browser:
        answer = await world.client.get("/config")
        assert answer.status_code == 200, answer.text
        return cls(world, answer.json(), session)

    def component(self, elem_id: str) -> dict[str, Any]:
        [found] = [c for c in self._config["components"] if c["props"].get("elem_id") == elem_id]
        return found

    def has(self, elem_id: str) -> bool:
        return any(c["props"].get("elem_id") == elem_id for c in self._config["components"])

    def event(self, elem_id: str, name: str = "click") -> dict[str, Any]:
        target = [self.component(elem_id)["id"], name]
        return next(d for d in self._config["dependencies"] if target in d["targets"])

    async def fires(self, elem_id: str, name: str = "click", **values: Any) -> list[dict[str, Any]]:
        """Fire an event; every message of it, the last one telling how it ended.

        ``values`` by ``elem_id``; what is not named keeps the value that the page came with.
        """
        event = self.event(elem_id, name)
        by_id = {self.component(key)["id"]: value for key, value in values.items()}
        components = {c["id"]: c for c in self._config["components"]}
        data = [by_id.get(i, components[i]["props"].get("value")) for i in event["inputs"]]
        body = {"fn_index": event["id"], "data": data, "session_hash": self._session, "event_data": None}
        joined = await self._world.client.post("/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        stream = await self._world.client.get(
            "/gradio_api/queue/data", params={"session_hash": self._session}, timeout=60
        )
        lines = [line[6:] for line in stream.text.splitlines() if line.startswith("data: ")]
        mine = joined.json()["event_id"]
        return [m for m in map(json.loads, lines) if m.get("event_id") == mine]

    async def result(self, elem_id: str, name: str = "click", **values: Any) -> dict[str, Any]:
        """What the event wrote, by the ``elem_id`` of each output that has one."""
        last = (await self.fires(elem_id, name, **values))[-1]
        assert last["msg"] == "process_completed" and last["success"], last
        outputs = self.event(elem_id, name)["outputs"]
        components = {c["id"]: c["props"].get("elem_id") for c in self._config["components"]}
        return {
            components[i]: value
            for i, value in zip(outputs, last["output"]["data"], strict=True)
            if components.get(i)
        }
