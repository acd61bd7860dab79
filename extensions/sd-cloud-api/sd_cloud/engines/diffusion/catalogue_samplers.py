"""The samplers and schedulers of webui 1.10.1: names, aliases and options, as its API lists them.

The formulas are in :mod:`sd_cloud.engines.diffusion.samplers`; a test holds the two together.
This table is apart from them so that the API process can list samplers without importing torch.
"""

from __future__ import annotations

from sd_cloud.engines.base import Sampler, Scheduler

_KARRAS = {"scheduler": "karras"}
_EXPONENTIAL = {"scheduler": "exponential"}
_SECOND_ORDER = {"second_order": "True"}
_BROWNIAN = {"brownian_noise": "True"}
_ENSD = {"uses_ensd": "True"}
_DISCARD = {"discard_next_to_last_sigma": "True"}

SAMPLERS: tuple[Sampler, ...] = (
    Sampler("DPM++ 2M", ("k_dpmpp_2m",), _KARRAS),
    Sampler("DPM++ SDE", ("k_dpmpp_sde",), {**_KARRAS, **_SECOND_ORDER, **_BROWNIAN}),
    Sampler("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), {**_EXPONENTIAL, **_BROWNIAN}),
    Sampler(
        "DPM++ 2M SDE Heun", ("k_dpmpp_2m_sde_heun",), {**_EXPONENTIAL, **_BROWNIAN, "solver_type": "heun"}
    ),
    Sampler("DPM++ 2S a", ("k_dpmpp_2s_a",), {**_KARRAS, **_ENSD, **_SECOND_ORDER}),
    Sampler("DPM++ 3M SDE", ("k_dpmpp_3m_sde",), {**_EXPONENTIAL, **_DISCARD, **_BROWNIAN}),
    Sampler("Euler a", ("k_euler_a", "k_euler_ancestral"), _ENSD),
    Sampler("Euler", ("k_euler",)),
    Sampler("LMS", ("k_lms",)),
    Sampler("Heun", ("k_heun",), _SECOND_ORDER),
    Sampler("DPM2", ("k_dpm_2",), {**_KARRAS, **_DISCARD, **_SECOND_ORDER}),
    Sampler("DPM2 a", ("k_dpm_2_a",), {**_KARRAS, **_DISCARD, **_ENSD, **_SECOND_ORDER}),
    Sampler("DPM fast", ("k_dpm_fast",), _ENSD),
    Sampler("DPM adaptive", ("k_dpm_ad",), _ENSD),
    Sampler("Restart", ("restart",), {**_KARRAS, **_SECOND_ORDER}),
    Sampler("DDIM", ("ddim",)),
    Sampler("DDIM CFG++", ("ddim_cfgpp",)),
    Sampler("PLMS", ("plms",)),
    Sampler("UniPC", ("unipc",)),
    Sampler("LCM", ("k_lcm",)),
)

SCHEDULERS: tuple[Scheduler, ...] = (
    Scheduler("automatic", "Automatic"),
    Scheduler("uniform", "Uniform", need_inner_model=True),
    Scheduler("karras", "Karras", default_rho=7.0),
    Scheduler("exponential", "Exponential"),
    Scheduler("polyexponential", "Polyexponential", default_rho=1.0),
    Scheduler("sgm_uniform", "SGM Uniform", ("SGMUniform",), need_inner_model=True),
    Scheduler("kl_optimal", "KL Optimal"),
    Scheduler("align_your_steps", "Align Your Steps"),
    Scheduler("simple", "Simple", need_inner_model=True),
    Scheduler("normal", "Normal", need_inner_model=True),
    Scheduler("ddim", "DDIM", need_inner_model=True),
    Scheduler("beta", "Beta", need_inner_model=True),
)
