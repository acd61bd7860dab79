"""The prompts of all pictures of a job: styles around them, comments out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sd_cloud.engines.diffusion.infotext import Texts
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.prompt_grammar import split_networks, without_comments
from sd_cloud.engines.diffusion.request import Request
from sd_cloud.engines.diffusion.styles import apply_styles, read_styles
from sd_cloud.errors import BadRequest

LIMIT_CHARACTERS = 100_000


@dataclass(frozen=True)
class OwnTexts:
    """What each picture of a job has of its own; None: what the request says."""

    prompts: Sequence[str] | None = None
    negative_prompts: Sequence[str] | None = None
    seeds: Sequence[int] | None = None


@dataclass(frozen=True)
class Pair:
    prompt: str
    negative: str


def texts_of(
    request: Request,
    options: Options,
    styles: Sequence[str],
    comments: list[str],
    own: OwnTexts | None = None,
) -> Texts:
    """Prompts and seeds of every picture. ``own``: what a script gives each of them.

    ``styles``: where they are read from, as ``--styles-file`` takes it; ``comments`` hears of those that are
    not there.
    """
    own = own or OwnTexts()
    count = len(own.prompts or own.negative_prompts or range(request.count))

    def written(prompts: Sequence[str], negatives: Sequence[str], heard: list[str]) -> list[Pair]:
        made: dict[Pair, Pair] = {}
        pairs = [Pair(*both) for both in zip(prompts, negatives, strict=True)]
        for pair in dict.fromkeys(pairs):
            made[pair] = _written(request, options, styles, pair, heard if not made else [])
        return [made[pair] for pair in pairs]

    prompts = own.prompts or [request.prompt] * count
    negatives = own.negative_prompts or [request.negative_prompt] * count
    first = written(prompts, negatives, comments)
    hires: list[Pair] = []
    if request.hires is not None:
        again, again_negative = request.hires.prompt, request.hires.negative_prompt
        hires = written(
            [again] * count if again else prompts,
            [again_negative] * count if again_negative else negatives,
            [],
        )
    seeds = request.seeds
    varied = seeds.subseed_strength != 0
    return Texts(
        prompts=[one.prompt for one in first],
        negative_prompts=[one.negative for one in first],
        seeds=own.seeds or [seeds.first + (0 if varied else i) for i in range(count)],
        subseeds=[seeds.subseed + i for i in range(count)],
        hires_prompts=[one.prompt for one in hires],
        hires_negative_prompts=[one.negative for one in hires],
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
    for field, text in (("prompt", prompt), ("negative_prompt", negative)):
        if len(text) > LIMIT_CHARACTERS:
            raise BadRequest(f"{len(text)} characters; at most {LIMIT_CHARACTERS} are read", field=field)
    for kind, option in (("hypernet", "sd_hypernetwork"), ("lora", "sd_lora")):
        prompt += _added(prompt, kind, options.text(option), options) if request.extra_networks else ""
    return Pair(prompt, negative)


def _added(prompt: str, kind: str, name: str, options: Options) -> str:
    """The call for a network that the options add to every prompt, unless the prompt has it."""
    called = {(call.kind, *call.positional[:1]) for call in split_networks(prompt)[1]}
    if name in ("None", "") or (kind, name) in called:
        return ""
    return f"<{kind}:{name}:{options.number('extra_networks_default_multiplier')}>"
