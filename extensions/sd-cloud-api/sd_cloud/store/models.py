"""Models that were registered over the API, and the resources that functions were given."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from sd_cloud.store.database import Database
from sd_cloud.store.schema import functions, models


@dataclass(frozen=True)
class ModelRow:
    """``status`` is ``registering``, ``unloaded`` or ``deleted``; which of the others is loaded is the
    engine's to say. ``filename``: the file, once it is there. Times are seconds since the epoch."""

    name: str
    type: str
    oss_path: str
    etag: str
    status: str
    filename: str | None = None
    message: str = ""
    registered: float = 0.0
    modified: float = 0.0


class ModelTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[ModelRow]:
        return await self._database.read(
            lambda c: [ModelRow(**row._mapping) for row in c.execute(select(models).order_by(models.c.name))]
        )

    async def get(self, name: str) -> ModelRow | None:
        def work(connection: Connection) -> ModelRow | None:
            row = connection.execute(select(models).where(models.c.name == name)).one_or_none()
            return ModelRow(**row._mapping) if row is not None else None

        return await self._database.read(work)

    async def put(self, model: ModelRow) -> ModelRow:
        """Record a model; the moment it was first registered stays."""
        now = time.time()

        def work(connection: Connection) -> ModelRow:
            values = {**model.__dict__, "modified": now}
            earlier = connection.execute(
                select(models.c.registered).where(models.c.name == model.name)
            ).scalar_one_or_none()
            values["registered"] = earlier if earlier is not None else now
            connection.execute(delete(models).where(models.c.name == model.name))
            connection.execute(insert(models).values(**values))
            return ModelRow(**values)

        return await self._database.write(work)


class FunctionTable:
    """A function is a checkpoint with its resources; one that was deleted is hidden until it is used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> dict[str, tuple[dict[str, Any], bool]]:
        """Function name -> its resources, and whether it was deleted."""
        return await self._database.read(
            lambda c: {
                row.name: (json.loads(row.resources), row.deleted) for row in c.execute(select(functions))
            }
        )

    async def put(
        self, name: str, model: str, resources: Mapping[str, Any], *, deleted: bool = False
    ) -> None:
        def work(connection: Connection) -> None:
            values = {"model": model, "resources": json.dumps(dict(resources)), "deleted": deleted}
            if not connection.execute(
                update(functions).where(functions.c.name == name).values(**values)
            ).rowcount:
                connection.execute(insert(functions).values(name=name, **values))

        await self._database.write(work)
