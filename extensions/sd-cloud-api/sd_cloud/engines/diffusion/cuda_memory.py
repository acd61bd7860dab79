"""What a CUDA device's memory holds, in the words of the webui's ``/sdapi/v1/memory``."""

from __future__ import annotations

from typing import Any

import torch

UNAVAILABLE: dict[str, Any] = {"error": "unavailable"}
KINDS = {"active": "active", "allocated": "allocated", "reserved": "reserved", "inactive": "inactive_split"}


def cuda_memory(device: torch.device) -> dict[str, Any]:
    """Bytes of the device, and of what torch holds of it; ``UNAVAILABLE`` for any other than CUDA."""
    if device.type != "cuda":
        return UNAVAILABLE
    free, total = torch.cuda.mem_get_info(device)
    stats = torch.cuda.memory_stats(device)
    told = {
        kind: {which: stats[f"{name}_bytes.all.{which}"] for which in ("current", "peak")}
        for kind, name in KINDS.items()
    }
    events = {"retries": stats["num_alloc_retries"], "oom": stats["num_ooms"]}
    return {"system": {"free": free, "used": total - free, "total": total}, **told, "events": events}
