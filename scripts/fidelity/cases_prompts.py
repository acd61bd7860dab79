"""What prompts can hold, and options, networks and styles that change what they mean."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.fidelity.case import CAT, PARTS, Case, case, hires_fields, source
from scripts.fidelity.networks import KINDS

PROMPTS = (
    "a [b:[c|d]:0.3] tree",
    "a [cat::0.5] and [:dog:0.5] tree",
    "a [cat:dog:3] tree",
    "a [cat:dog:1.0] tree",
    "a [cat:dog:1] tree",
    "a [cat:dog:0] tree",
    "a [red|green|blue] cat",
    "a [red|] cat",
    "a [|green|] cat [dog|]",
    "[(red:1.4):(blue:0.6):0.5] cat",
    "([red:blue:0.5] cat:1.3)",
    "a [[red cat]] [wood:0.4] table",
    "a [red:[green:blue:0.7]:0.3] cat",
    "[a cat|a dog:0.5:0.3]",
    "a cat AND a dog :-0.3 AND house:1.1",
    "a [cat:dog:0.5] AND a [red|blue] house :0.6",
    "AND a cat",
    "a cat AND ",
    "BREAK a cat BREAK",
    "a cat BREAKdance BREAK, a dog BREAK BREAK house",
    "(a cat",
    "a cat) on ((table",
    "[a cat",
    "a cat] on [table",
    "(a:b:1.2) (c:1.2.3) (d:) (e:-1)",
    r"\(a\) \[b\] c\\d \\(e\\) (f\):1.3)",
    r"a \[cat:dog:0.5\] tree \|",
    "(((a cat))) ((dog:1.2):0.8) [[[house]]]",
    "(a cat:0) on a table",
    "(a cat: 1.3) (dog :1.3 ) (x:.5) (y:1e1)",
    "a cat\non a table\n\nwith a hat",
    "a cat # with a comment\non a table",
    "",
    "   ",
    ",,,,",
    "émigré naïve 猫 🐈 Straße",
    "a <b> c </b> & 'd' \"e\"",
    "a: b, c: d",
    "cat " * 80,
    PARTS,
    "a " * 74 + ", end of the chunk, and more",
    "a " * 60
    + "word, word word word word word word word word word word word word word word word word word word word",
    "(" + "long words " * 40 + ":1.3), (" + "other words, " * 40 + ":0.7)",
    "x" * 300,
    "a cat:0.5 AND dog",
    "a [cat:dog:7.5] [red:blue:-1] tree",
    "[cat:dog:2,5]",
    "[ a : b : 0.5 ]",
    "a AND b AND c",
    "a cat ANDROID AND  a dog",
    "{cat|dog} __colors__",
    "a cat <hypernot:x:1> on a table",
)


def _prompts() -> Iterator[Case]:
    for number, prompt in enumerate(PROMPTS):
        yield case("prompts", f"prompt {number}: {_shown(prompt)}", prompt=prompt)
    for number, prompt in enumerate(PROMPTS[:24:4]):
        yield case("prompts", f"in the negative {number}: {_shown(prompt)}", negative_prompt=prompt)
    yield case("prompts", "both long", negative_prompt=PARTS, prompt="cat, " * 50)
    yield case("prompts", "long negative only", negative_prompt=PARTS)
    yield case("prompts", "empty both", prompt="", negative_prompt="")
    yield case(
        "prompts",
        "editing, DPM++ SDE (second order)",
        prompt="a [cat:dog:0.5] [x|y]",
        sampler_name="DPM++ SDE",
    )
    yield case("prompts", "editing, Heun", prompt="a [cat:dog:3] [x|y]", sampler_name="Heun")
    yield case("prompts", "editing, DDIM", prompt="a [cat:dog:0.5] [x|y]", sampler_name="DDIM")
    yield case("prompts", "editing, img2img", "img2img", prompt="a [cat:dog:0.5] [x|y]", **source(0.5))
    yield case("prompts", "AND with a long one", prompt=f"a cat AND {PARTS} :0.5")
    yield case("prompts", "AND, batch of 2", prompt="a cat AND a dog :0.5", batch_size=2)


def _shown(prompt: str) -> str:
    return f"`{prompt[:44]}`".replace("\n", "\\n").replace("|", "\\|")


def _prompt_options() -> Iterator[Case]:
    weighted = "a (red:1.4) cat on a [wooden] ((table)), (dog:0.3)"
    for mode in ("None", "Ignore", "Original", "No norm"):
        yield case(
            "prompt options", f"emphasis {mode}", prompt=weighted, override_settings={"emphasis": mode}
        )
    sdxl = {"emphasis": "No norm", "sd_model_checkpoint": "tiny-sdxl"}
    yield case("prompt options", "emphasis No norm, SDXL", prompt=weighted, override_settings=sdxl)
    for count in (0, 5, 74):
        options = {"comma_padding_backtrack": count}
        yield case(
            "prompt options", f"comma_padding_backtrack {count}", prompt=PARTS, override_settings=options
        )
    for name in ("pad_cond_uncond", "pad_cond_uncond_v0"):
        options = {name: True}
        yield case("prompt options", f"{name}, short negative", prompt=PARTS, override_settings=options)
        yield case(
            "prompt options", f"{name}, long negative", negative_prompt=PARTS, override_settings=options
        )
    old = {"use_old_scheduling": True}
    yield case(
        "prompt options", "use_old_scheduling", prompt="a [cat:dog:1] [x:y:0.5]", override_settings=old
    )
    hires = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    yield case(
        "prompt options",
        "use_old_scheduling, hires",
        prompt="a [cat:dog:0.5]",
        override_settings=old,
        **hires,
    )
    off = {"enable_prompt_comments": False}
    yield case("prompt options", "comments off", prompt="a cat # dog\nx", override_settings=off)
    for skip in (1, 2, 5, 12):
        options = {"CLIP_stop_at_last_layers": skip}
        yield case("prompt options", f"clip skip {skip}", override_settings=options)
    yield case("prompt options", "batch_cond_uncond off", override_settings={"batch_cond_uncond": False})
    yield case(
        "prompt options",
        "old emphasis",
        prompt=weighted,
        override_settings={"use_old_emphasis_implementation": True},
    )


def _old_emphasis() -> Iterator[Case]:
    prompts = {
        "nested": "((a)) [cat] ([dog]) (house:1.3)",
        "unclosed": "a ((cat, [dog",
        "long": ", ".join(f"(thing {number})" for number in range(40)),
        "embedding": "a (tiny-word) cat",
        "glued": "a (cat)) ]] dog)",
    }
    old = {"use_old_emphasis_implementation": True}
    for name, prompt in prompts.items():
        yield case("prompt options", f"old emphasis, {name}", prompt=prompt, override_settings=old)
    none = {**old, "emphasis": "None"}
    yield case("prompt options", "old emphasis, none", prompt="a (cat)", override_settings=none)
    xl = {**old, "sd_model_checkpoint": "tiny-sdxl"}
    yield case("refusals", "old emphasis, SDXL", prompt="a (cat)", override_settings=xl)


def _networks() -> Iterator[Case]:
    prompts = {
        "LoRA twice": f"{CAT} <lora:tiny-style:0.8> <lora:tiny-second:0.5>",
        "the same LoRA twice": f"{CAT} <lora:tiny-style:0.3> <lora:tiny-style:0.4>",
        "LoRA, text and U-Net weights": f"{CAT} <lora:tiny-style:0.5:0.2>",
        "LoRA, te= and unet=": f"{CAT} <lora:tiny-style:te=0.2:unet=0.9>",
        "LoRA, only a name": f"{CAT} <lora:tiny-style>",
        "LoRA, weight 0": f"{CAT} <lora:tiny-style:0>",
        "LoRA, negative weight": f"{CAT} <lora:tiny-style:-0.7>",
        "LoRA, dyn": f"{CAT} <lora:tiny-style:1:1:2>",
        "LoRA, unknown": f"{CAT} <lora:nowhere:1>",
        "LoRA, unknown beside a known": f"{CAT} <lora:nowhere:1> <lora:tiny-style:1>",
        "LoRA in the middle": "a red <lora:tiny-style:0.8> cat",
        "LoRA by lyco": f"{CAT} <lyco:tiny-style:0.8>",
        "LoRA, weight not a number": f"{CAT} <lora:tiny-style:much>",
        "LoRA with AND": "a cat AND a dog :0.4 <lora:tiny-style:0.8>",
        "embedding twice": "tiny-word cat and tiny-word table",
        "embedding with emphasis": "a (tiny-word:1.3) cat",
        "embedding at the edge": "a " * 73 + "tiny-word cat",
        "embedding in capitals": "a Tiny-Word cat",
    }
    for name, prompt in prompts.items():
        yield case("networks", name, prompt=prompt)
    yield case("networks", "LoRA in the negative", negative_prompt="<lora:tiny-style:1>")
    yield case("networks", "embedding in the negative", negative_prompt="tiny-word, blurry")
    lora = f"{CAT} <lora:tiny-style:0.8>"
    yield case(
        "networks", "LoRA, clip skip 2", prompt=lora, override_settings={"CLIP_stop_at_last_layers": 2}
    )
    yield case("networks", "LoRA, batch of 2", prompt=lora, batch_size=2)
    yield case("networks", "LoRA, img2img", "img2img", prompt=lora, **source(0.6))
    yield case("networks", "LoRA, disable_extra_networks", prompt=lora, disable_extra_networks=True)
    yield case("networks", "LoRA, hires prompt", prompt=lora, **{**hires_fields(), "hr_prompt": CAT})
    yield case("networks", "no LoRA, then in hires", **{**hires_fields(), "hr_prompt": lora})
    yield case("networks", "sd_lora", override_settings={"sd_lora": "tiny-style"})
    yield case(
        "networks", "LoRA hashes off", prompt=lora, override_settings={"lora_add_hashes_to_infotext": False}
    )
    yield case("networks", "after LoRA, none")
    for kind in KINDS:
        yield case("networks", f"kind {kind}", prompt=f"{CAT} <lora:tiny-{kind}:0.8>")
    yield case("networks", "kinds together", prompt=f"{CAT} <lora:tiny-oft:0.5> <lora:tiny-dora:0.6:0.3>")
    xl = {"sd_model_checkpoint": "tiny-sdxl"}
    yield case("networks", "SDXL LoRA", prompt=f"{CAT} <lora:tiny-sdxl:0.8>", override_settings=xl)
    yield case("networks", "hypernetwork", prompt=f"{CAT} <hypernet:tiny-hyper:0.7>")
    yield case("networks", "hypernetwork and LoRA", prompt=f"{lora} <hypernet:tiny-hyper:-0.5>")
    yield case("networks", "sd_hypernetwork", override_settings={"sd_hypernetwork": "tiny-hyper"})
    yield case("networks", "hypernetwork unknown", prompt=f"{CAT} <hypernet:nowhere:1>")


def _styles() -> Iterator[Case]:
    yield case("styles", "a style", styles=["plain"])
    yield case("styles", "two styles", styles=["plain", "around"], negative_prompt="dog")
    yield case("styles", "a style not there", styles=["nowhere"])
    yield case("styles", "a style on an empty prompt", prompt="", styles=["plain"])
    yield case("styles", "a style, hires", styles=["around"], **hires_fields())


def cases() -> Iterator[Case]:
    yield from _prompts()
    yield from _prompt_options()
    yield from _old_emphasis()
    yield from _networks()
    yield from _styles()
