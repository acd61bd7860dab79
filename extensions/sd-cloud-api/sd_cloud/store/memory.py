"""The task store in the process's memory: nothing survives a restart."""

from __future__ import annotations

from sd_cloud.store.database import in_memory
from sd_cloud.store.sql import SqlStore


class MemoryStore(SqlStore):
    """The same store on a private SQLite database, for tests and where no state dir is wanted."""

    def __init__(self) -> None:
        super().__init__(in_memory())
