"""img2img alternative test: from the noise that the picture itself may have come from."""

from __future__ import annotations

from typing import Any

from sd_cloud.engines.diffusion.inversion import Inversion
from sd_cloud.engines.diffusion.scripts.run import Session
from sd_cloud.job import Outcome


def img2img_alternative(session: Session) -> Outcome:
    """One img2img job whose noise is found by walking Euler's steps backwards (briansemrau, webui #736)."""
    values = session.values
    own = Inversion(
        prompt=values["original_prompt"],
        negative_prompt=values["original_negative_prompt"],
        cfg_scale=values["cfg"],
        steps=int(values["st"]),
        randomness=values["randomness"],
        sigma_adjustment=bool(values["sigma_adjustment"]),
    )
    changes: dict[str, Any] = {"n_iter": session.whole("n_iter", 1)}
    if values["override_sampler"]:
        changes |= {"sampler_name": "Euler"}
    if values["override_prompt"]:
        changes |= {"prompt": own.prompt, "negative_prompt": own.negative_prompt}
    if values["override_steps"]:
        changes |= {"steps": own.steps}
    if values["override_strength"]:
        changes |= {"denoising_strength": 1.0}
    marks = {
        "Decode prompt": own.prompt,
        "Decode negative prompt": own.negative_prompt,
        "Decode CFG scale": own.cfg_scale,
        "Decode steps": own.steps,
        "Randomness": own.randomness,
        "Sigma Adjustment": own.sigma_adjustment,
    }
    session.run(marks, inversion=own, **changes)
    return session.outcomes[0]
