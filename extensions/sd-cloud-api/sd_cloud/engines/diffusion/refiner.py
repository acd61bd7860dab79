"""When a second checkpoint takes over in the middle of a pass."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

from sd_cloud.engines.diffusion.guidance import Guided
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Request
from sd_cloud.engines.diffusion.sampling import Plan

TIMESTEPS = 1000


def is_due(
    request: Request,
    options: Options,
    guided: Guided,
    level: Tensor,
    plan: Plan,
    marks: MutableMapping[str, Any],
) -> bool:
    """Whether the refiner works from this call on.

    ``level`` is the call's sigma or timestep: the share that is done is counted in the model's
    timesteps, or with ``refiner_switch_by_sample_steps`` in calls.
    """
    assert request.refiner is not None
    if options.flag("refiner_switch_by_sample_steps"):
        done = guided.step / guided.total_calls
        marks["Refiner switch by sampling steps"] = True
    elif plan.by_timesteps:
        done = (TIMESTEPS - 1 - int(level.max())) / TIMESTEPS
    else:
        nearest = int((guided.levels.sigmas - level.max().cpu()).abs().argmin())
        done = (TIMESTEPS - 1 - nearest) / TIMESTEPS
    if request.refiner.switch_at is not None and done < request.refiner.switch_at:
        return False
    if request.hires is not None:
        which = options.text("hires_fix_refiner_pass")
        if (which == "first pass" and plan.hires) or (which == "second pass" and not plan.hires):
            return False
        if which != "second pass":
            marks["Hires refiner"] = which
    return True
