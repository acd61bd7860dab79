"""Loopback: img2img again and again on its own result, the denoising strength moving along a curve."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.interrogate.files import weights_of
from sd_cloud.engines.diffusion.scripts.run import Session, encoded, image_of
from sd_cloud.job import Outcome, Picture

ORIGINAL = 1  # inpainting_fill: what is masked starts as it is
INTERROGATION_FIELD = "script_args[3]"
DESCRIBERS = {"None": None, "CLIP": "clip", "DeepBooru": "deepdanbooru"}


def loopback(session: Session) -> Outcome:
    """Pictures of all loops, or with several batches the last of each; a grid of them in one row."""
    loops, final = int(session.values["loops"]), float(session.values["final_denoising_strength"])
    curve = session.values["denoising_curve"]
    describer = DESCRIBERS[session.values["append_interrogation"]]
    if describer is not None:
        weights_of(describer, session.settings, INTERROGATION_FIELD)
    batches = session.whole("n_iter", 1)
    given = session.payload.get("denoising_strength")
    first = 0.75 if given is None else float(given)
    source = session.source()
    if session.job.options.get("img2img_color_correction"):
        # As the webui's own option only: it looks before override_settings are in force.
        session.colour_target = pictures.colour_target(source.convert("RGB"))
    session.count = loops * batches
    seed, subseed = session.fixed_seed("seed"), session.fixed_seed("subseed")
    marks = {"Final denoising strength": final, "Denoising curve": curve}
    made: list[Picture] = []
    for _ in range(batches):
        changes: dict[str, Any] = {}
        last: Picture | None = None
        for loop in range(loops):
            strength = strength_at(loop, loops, first, final, curve)
            if describer is not None:
                seen = encoded(image_of(last)) if last else encoded(source)
                words = session.describe(session.job, describer, seen)
                changes["prompt"] = ", ".join([*filter(None, [session.text("prompt")]), words])
            found = session.run(
                marks, batch_size=1, seed=seed, subseed=subseed, denoising_strength=strength, **changes
            )
            if session.stopped or session.skipped or not found:
                break
            seed += 1
            last = found[0]
            changes |= {"init_images": [encoded(image_of(last))], "inpainting_fill": ORIGINAL}
            if batches == 1:
                made.append(last)
        if session.stopped:
            break
        if batches > 1 and last is not None and not session.skipped:
            made.append(last)
    if session.outcomes:
        # The webui has worked out the next loop's strength by then, and says that.
        after = strength_at(loops, loops, first, final, curve)
        last_one = session.outcomes[-1]
        session.outcomes[-1] = replace(last_one, info={**last_one.info, "denoising_strength": after})
    grid = None
    if len(made) > 1 and session.options.flag("return_grid"):
        grid = session.sheet([image_of(one) for one in made], rows=1)
    return session.outcome(made, grid=grid)


def strength_at(loop: int, loops: int, first: float, final: float, curve: str) -> float:
    """The denoising strength of a loop, counted from 0: from ``first`` on the way to ``final``."""
    if loops == 1 or loop == 0:
        return first
    progress = loop / (loops - 1)
    if curve == "Aggressive":
        progress = math.sin(progress * math.pi * 0.5)
    elif curve == "Lazy":
        progress = 1 - math.cos(progress * math.pi * 0.5)
    return first + (final - first) * progress
