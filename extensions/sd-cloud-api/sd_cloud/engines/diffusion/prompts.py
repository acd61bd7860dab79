"""The prompts of all pictures of a job: styles around them, comments out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sd_cloud.engines.diffusion.infotext import Texts
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.prompt_grammar import split_networks, without_comments
from sd_cloud.engines.diffusion.request import Request
from sd_cloud.engines.diffusion.styles import apply_styles, read_styles


@dataclass(frozen=True)
class Pair:
    prompt: str
    negative: str


def texts_of(request: Request, options: Options, styles: Sequence[str], comments: list[str]) -> Texts:
    """Prompts and seeds of every picture. ``comments`` hears of styles that are not there.

    ``styles``: where they are read from, as ``--styles-file`` takes it.
    """
    count = request.count
    first = _written(request, options, styles, Pair(request.prompt, request.negative_prompt), comments)
    hires = None
    if request.hires is not None:
        own = Pair(
            request.hires.prompt or request.prompt,
            request.hires.negative_prompt or request.negative_prompt,
        )
        hires = _written(request, options, styles, own, [])
    seeds = request.seeds
    varied = seeds.subseed_strength != 0
    return Texts(
        prompts=[first.prompt] * count,
        negative_prompts=[first.negative] * count,
        seeds=[seeds.first + (0 if varied else i) for i in range(count)],
        subseeds=[seeds.subseed + i for i in range(count)],
        hires_prompts=[hires.prompt] * count if hires else (),
        hires_negative_prompts=[hires.negative] * count if hires else (),
    )


def _written(
    request: Request, options: Options, styles: Sequence[str], pair: Pair, comments: list[str]
) -> Pair:
    prompt, negative = pair.prompt, pair.negative
    if request.styles:
        known = read_styles(styles)
        prompt, negative, unknown = apply_styles(prompt, negative, request.styles, known)
        if unknown:
            comments.append(f"Style not found: {', '.join(unknown)}")
    if options.flag("enable_prompt_comments"):
        prompt, negative = without_comments(prompt), without_comments(negative)
    for kind, option in (("hypernet", "sd_hypernetwork"), ("lora", "sd_lora")):
        prompt += _added(prompt, kind, options.text(option), options) if request.extra_networks else ""
    return Pair(prompt, negative)


def _added(prompt: str, kind: str, name: str, options: Options) -> str:
    """The call for a network that the options add to every prompt, unless the prompt has it."""
    called = {(call.kind, *call.positional[:1]) for call in split_networks(prompt)[1]}
    if name in ("None", "") or (kind, name) in called:
        return ""
    return f"<{kind}:{name}:{options.number('extra_networks_default_multiplier')}>"
