"""Samplers and schedules give the numbers that the published implementations give.

``sampler_values.json`` was made by k-diffusion's functions (and, for what it lacks, by webui
1.10.1's) from the same start on the model below: the first eight numbers of the result.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from sd_cloud.engines.diffusion.catalogue_samplers import SAMPLERS, SCHEDULERS  # noqa: E402
from sd_cloud.engines.diffusion.model import schedule  # noqa: E402
from sd_cloud.engines.diffusion.noise import BrownianNoise, RandomKind  # noqa: E402
from sd_cloud.engines.diffusion.noise_levels import (  # noqa: E402
    SCHEDULES,
    ConsistencyLevels,
    Levels,
    Range,
    karras,
    zero_terminal_snr,
)
from sd_cloud.engines.diffusion.samplers import BY_NAME, TIMESTEP_SAMPLERS, timesteps  # noqa: E402
from sd_cloud.engines.diffusion.samplers.tools import Knobs  # noqa: E402
from sd_cloud.engines.diffusion.samplers.unipc import UniPCKnobs, unipc  # noqa: E402

VALUES = json.loads((Path(__file__).parent / "sampler_values.json").read_text("utf-8"))
ALPHAS = schedule(SimpleNamespace(beta_start=0.00085, beta_end=0.012, timesteps=1000))
LEVELS = Levels(ALPHAS)
START = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(3))


def noise_seen(x, timestep):
    """A stand-in for a U-Net: smooth, and different at each timestep."""
    return torch.tanh(x * 0.7 + timestep.view(-1, 1, 1, 1) / 1500.0) * 0.9 + 0.05 * x


def denoise(x, sigma):
    level = sigma.view(-1, 1, 1, 1)
    return x - level * noise_seen(x / (level**2 + 1) ** 0.5, LEVELS.timestep(sigma))


def drawing():
    generator = torch.Generator().manual_seed(11)
    return lambda: torch.randn(2, 4, 2, 2, generator=generator)


@pytest.mark.parametrize("steps", [7, 24])
@pytest.mark.parametrize("name", sorted(VALUES["samplers"]))
def test_a_sampler_takes_the_published_steps(name: str, steps: int) -> None:
    sigmas = karras(steps, Range(LEVELS.lowest, LEVELS.highest, LEVELS))
    churned = name in ("Euler", "Heun", "DPM2")
    knobs = Knobs(
        noise=drawing(),
        between=BrownianNoise(START, sigmas, [7, 8], RandomKind("GPU", torch.device("cpu"))),
        eta=0.7,
        s_churn=4.0 if churned else 0.0,
        s_tmin=0.05 if churned else 0.0,
        s_tmax=8.0 if churned else math.inf,
        s_noise=1.01 if churned else 1.0,
        lowest=LEVELS.lowest,
        highest=LEVELS.highest,
        steps=steps,
        second_form=name == "DPM++ 2M SDE Heun",
    )
    made = BY_NAME[name](denoise, START * sigmas[0], sigmas, knobs)
    wanted = torch.tensor(VALUES["samplers"][name][str(steps)])
    torch.testing.assert_close(made.flatten()[:8], wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("steps", [4, 9])
@pytest.mark.parametrize("name", sorted(VALUES["timesteps"]))
def test_a_timestep_sampler_takes_the_published_steps(name: str, steps: int) -> None:
    walked = (torch.arange(0, 1000, 1000 // steps) + 1).clip(0, 999)
    last = {}

    def epsilon(x, timestep):
        last["uncond"] = 0.8 * noise_seen(x, timestep)
        return noise_seen(x, timestep)

    walk = timesteps.Walk(ALPHAS, drawing(), eta=0.5, last_uncond=lambda: last["uncond"])
    if name.startswith("UniPC"):
        made = unipc(epsilon, START, len(walked), walk, UniPCKnobs(variant=name.split()[1]))
    else:
        run = {"DDIM": timesteps.ddim, "DDIM CFG++": timesteps.ddim_cfgpp, "PLMS": timesteps.plms}[name]
        made = run(epsilon, START, walked, walk)
    wanted = torch.tensor(VALUES["timesteps"][name][str(steps)])
    torch.testing.assert_close(made.flatten()[:8], wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("count", [1, 6, 11])
@pytest.mark.parametrize("name", sorted(VALUES["schedules"]))
def test_a_schedule_picks_the_published_levels(name: str, count: int) -> None:
    made = SCHEDULES[name](count, Range(LEVELS.lowest, LEVELS.highest, LEVELS))
    wanted = torch.tensor(VALUES["schedules"][name][str(count)])
    torch.testing.assert_close(made.float(), wanted, rtol=1e-4, atol=2e-5)


def test_every_sampler_and_scheduler_that_is_listed_has_its_formula() -> None:
    assert {one.name for one in SAMPLERS} == {*BY_NAME, *TIMESTEP_SAMPLERS}
    assert {one.name for one in SCHEDULERS} == {"automatic", *SCHEDULES}


def test_timesteps_and_levels_are_each_others_inverse_between_the_models_own() -> None:
    wanted = torch.tensor([0.5, 13.25, 500.75, 998.5])
    torch.testing.assert_close(LEVELS.timestep(LEVELS.sigma(wanted)), wanted, rtol=1e-4, atol=1e-2)


def test_consistency_models_have_fifty_levels_at_their_own_timesteps() -> None:
    levels = ConsistencyLevels(ALPHAS)
    assert len(levels.sigmas) == 50
    assert levels.timestep(levels.sigmas[[0, -1]]).tolist() == [19, 999]
    assert float(levels.evenly(4)[-1]) == 0.0


def test_rescaled_levels_keep_the_first_and_end_in_noise() -> None:
    rescaled = zero_terminal_snr(ALPHAS)
    assert float(rescaled[0]) == pytest.approx(float(ALPHAS[0]), rel=1e-5)
    assert float(rescaled[-1]) < 1e-6
