"""Who is calling, and what they may."""

from sd_cloud.access.administration import Administration
from sd_cloud.access.caller import Access
from sd_cloud.access.gate import Gate
from sd_cloud.access.identity import OPERATOR, Caller
from sd_cloud.access.routes import ADMIN_ROUTES, needs_admin
from sd_cloud.access.token import made_token
from sd_cloud.access.users import Users

__all__ = [
    "ADMIN_ROUTES",
    "OPERATOR",
    "Access",
    "Administration",
    "Caller",
    "Gate",
    "Users",
    "made_token",
    "needs_admin",
]
