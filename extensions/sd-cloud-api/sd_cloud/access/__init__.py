"""Who is calling, and what they may."""

from sd_cloud.access.caller import OPERATOR, Access, Caller
from sd_cloud.access.gate import Gate
from sd_cloud.access.routes import ADMIN_ROUTES, needs_admin
from sd_cloud.access.token import made_token

__all__ = ["ADMIN_ROUTES", "OPERATOR", "Access", "Caller", "Gate", "made_token", "needs_admin"]
