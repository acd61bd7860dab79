"""Samplers: from noise to a latent, given a model that denoises.

``BY_NAME`` holds those that walk over noise levels, by the webui's names; ``TIMESTEP_SAMPLERS``
those that walk over the model's timesteps. Together they are the table in
:mod:`sd_cloud.engines.diffusion.catalogue_samplers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from sd_cloud.engines.diffusion.samplers import dpm_solver, multistep, steps
from sd_cloud.engines.diffusion.samplers.tools import Denoise, Knobs

BY_NAME: Mapping[str, Callable[[Denoise, Tensor, Tensor, Knobs], Tensor]] = {
    "DPM++ 2M": multistep.dpmpp_2m,
    "DPM++ SDE": steps.dpmpp_sde,
    "DPM++ 2M SDE": multistep.dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": multistep.dpmpp_2m_sde,
    "DPM++ 2S a": steps.dpmpp_2s_ancestral,
    "DPM++ 3M SDE": multistep.dpmpp_3m_sde,
    "Euler a": steps.euler_ancestral,
    "Euler": steps.euler,
    "LMS": multistep.lms,
    "Heun": steps.heun,
    "DPM2": steps.dpm_2,
    "DPM2 a": steps.dpm_2_ancestral,
    "DPM fast": dpm_solver.dpm_fast,
    "DPM adaptive": dpm_solver.dpm_adaptive,
    "Restart": steps.restart,
    "LCM": steps.consistency,
}

TIMESTEP_SAMPLERS = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
CHURNED = ("Euler", "Heun", "DPM2")
"""The samplers that ``s_churn``, ``s_tmin``, ``s_tmax`` and ``s_noise`` reach."""
NOISE_SCALED = (
    *CHURNED,
    "DPM fast",
    "DPM2 a",
    "DPM++ 2S a",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 3M SDE",
)
"""The samplers that ``s_noise`` reaches."""
WITHOUT_ETA = ("DPM++ 2M", "Euler", "LMS", "Heun", "DPM2", "Restart", "LCM", "PLMS", "UniPC")
"""The samplers that have no eta."""
ETA_ZERO_BY_DEFAULT: tuple[str, ...] = ()
