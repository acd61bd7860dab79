"""The one path of a job: check, record, queue, fetch its inputs, make, save, tell."""

from sd_cloud.service.delivery import CANCEL_GRACE_SECONDS
from sd_cloud.service.service import Service, is_kept

__all__ = ["CANCEL_GRACE_SECONDS", "Service", "is_kept"]
