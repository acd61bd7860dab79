"""A caller by name: who owns what they ask for, and may they administer."""

from __future__ import annotations

from dataclasses import dataclass

from sd_cloud.job import OPERATOR as OPERATOR


@dataclass(frozen=True)
class Caller:
    """``owner`` goes into the caller's jobs; only an ``admin`` may use `ADMIN_ROUTES`."""

    owner: str
    admin: bool = False

    def may_see(self, owner: str) -> bool:
        return self.admin or self.owner == owner
