"""The webui's built-in scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.fidelity import pictures
from scripts.fidelity.case import CAT, Case, case, hires_fields, lettered, source, under


def _of_img2img() -> Iterator[Case]:
    yield case(
        "scripts",
        "Loopback",
        "img2img",
        **source(0.5),
        script_name="Loopback",
        script_args=[2, 0.6, "Linear", "None"],
    )
    yield case(
        "scripts",
        "Loopback, Aggressive",
        "img2img",
        **source(0.5),
        script_name="Loopback",
        script_args=[3, 0.7, "Aggressive", "None"],
        batch_size=1,
    )
    yield case(
        "scripts",
        "Loopback, 2 batches",
        "img2img",
        **source(0.5),
        script_name="Loopback",
        script_args=[2, 0.4, "Lazy", "None"],
        n_iter=2,
    )
    loopback = {**source(0.5), "script_name": "Loopback", "script_args": [1, 0.6, "Linear", "None"]}
    corrected = {"img2img_color_correction": True}
    yield case("scripts", "Loopback, colours as asked", "img2img", **loopback, override_settings=corrected)
    yield under(case("scripts", "Loopback, colours by option", "img2img", **loopback), **corrected)
    for upscaler in (0, 1, "Lanczos", "Nearest", "tiny-x4"):
        yield case(
            "scripts",
            f"SD upscale, {upscaler}",
            "img2img",
            **source(0.3),
            script_name="SD upscale",
            script_args=["", 32, upscaler, 1.5],
        )
    for directions in (["left"], ["up", "down"], ["left", "right", "up", "down"]):
        yield case(
            "scripts",
            f"Outpainting mk2 {'+'.join(directions)}",
            "img2img",
            **source(0.8),
            script_name="Outpainting mk2",
            script_args=["", 64, 8, directions, 1.0, 0.05],
            inpainting_fill=1,
            inpaint_full_res=False,
        )


def _matrix() -> Iterator[Case]:
    def matrix(name: str, route: str = "txt2img", args: tuple[Any, ...] = (), **fields: Any) -> Case:
        sent = [*args, *(False, False, "positive", "comma", 0)[len(args) :]]
        prompt = {"prompt": "a cat|red|on a table, watercolor|at night"}
        asked = {"script_name": "Prompt matrix", "script_args": sent, **prompt, **fields}
        return lettered(case("scripts", f"Prompt matrix, {name}", route, **asked))

    yield matrix("3 parts")
    yield matrix("batches of 3", batch_size=3)
    yield matrix("at the start, other seeds, spaces", args=(True, True, "positive", "space", 10))
    yield matrix("negative", args=(False, False, "negative"), prompt=CAT, negative_prompt="blurry|dark|a dog")
    yield matrix("no parts", prompt=CAT)
    yield matrix("styles", styles=["plain"], prompt="a cat|red")
    yield matrix("hires", **hires_fields(), prompt="a cat|red")
    yield matrix("subseed", prompt="a cat|red|blue", subseed_strength=0.4)
    yield matrix("img2img", "img2img", **source(0.6), prompt="a cat|red|blue", batch_size=2)


def _from_file() -> Iterator[Case]:
    def lines(name: str, text: str, args: tuple[Any, ...] = (False, False, "start"), **fields: Any) -> Case:
        sent = {"script_name": "Prompts from file or textbox", "script_args": [*args, text]}
        return case(
            "scripts", f"Prompts from file, {name}", fields.pop("route", "txt2img"), **{**fields, **sent}
        )

    plain = "a dog\n\n  a house on a hill\n"
    yield lines("two lines", plain, prompt="")
    yield lines("before the prompt", plain)
    yield lines("after the prompt", plain, (False, False, "end"))
    yield lines("seeds go on", plain, (True, False, "start"), n_iter=2)
    commands = (
        "--prompt a tall tower --negative_prompt grey sky --seed 7 --steps 4 --cfg_scale 5.5\n"
        '--prompt "a (red:1.2) boat" --width 72 --height 64 --sampler_name "DPM++ 2M" --tiling true\n'
        "--seed 9 --subseed 3 --subseed_strength 0.4 --batch_size 2"
    )
    yield lines("command lines", commands, negative_prompt="blurry")
    yield lines("another checkpoint", "--prompt a --sd_model tiny-b\n--prompt b", prompt="")
    yield lines("img2img", plain, route="img2img", **source(0.5))


def xyz(name: str, route: str = "txt2img", *lines: tuple[int, Any], **fields: Any) -> Case:
    """``lines``: type and values of X, Y and Z; a list stands for the page's own choice."""
    args: list[Any] = []
    for kind, values in (*lines, (0, ""), (0, ""), (0, ""))[:3]:
        args += [kind, "", values] if isinstance(values, list) else [kind, values, []]
    flags = {
        "draw_legend": True,
        "include_lone_images": False,
        "include_sub_grids": False,
        "no_fixed_seeds": False,
        "vary_seeds_x": False,
        "vary_seeds_y": False,
        "vary_seeds_z": False,
        "margin_size": 0,
        "csv_mode": False,
    }
    own = {key: fields.pop(key) for key in flags if key in fields}
    args += {**flags, **own}.values()
    grids = 3 if own.get("include_sub_grids") else 1  # of two values of Z
    sent = {"script_name": "X/Y/Z plot", "script_args": args}
    made = case("scripts", f"X/Y/Z plot, {name}", route, **{**fields, **sent})
    return lettered(made, grids) if own.get("draw_legend", True) else made


def _plots() -> Iterator[Case]:
    lone = {"include_lone_images": True}
    vary = dict.fromkeys(("vary_seeds_x", "vary_seeds_y", "vary_seeds_z"), True)
    yield xyz("steps by CFG", "txt2img", (4, "3-5"), (6, "4, 7.5"))
    lines: tuple[tuple[int, Any], ...] = ((1, "1,2"), (3, "0.2"), (6, "4-6 (+2)"))
    yield xyz("lone pictures and grids", "txt2img", *lines, **lone, include_sub_grids=True)
    yield xyz("no legend", "txt2img", (4, "3,4"), (6, "4, 7"), draw_legend=False, margin_size=12)
    yield xyz("margins", "txt2img", (4, "3,4"), (6, "4, 7"), margin_size=12, **lone)
    yield xyz("Prompt S/R", "txt2img", (7, "cat, dog, (big:1.2) house"), (4, "3-5 [2]"), **lone)
    yield xyz("Prompt order", "txt2img", (8, "red, cat, table"), **lone)
    lines = (9, ["Euler a", "DPM++ 2M"]), (17, ["Karras", "Automatic"])
    yield xyz("samplers and schedulers", "txt2img", *lines, **lone)
    names = ["tiny-b.safetensors", "tiny-a.safetensors"]
    yield xyz("checkpoints", "txt2img", (11, names), (4, "3,4"), **lone)
    lines = (29, "Automatic, tiny-vae.safetensors"), (24, "1,2")
    yield xyz("VAE and clip skip", "txt2img", *lines, csv_mode=True, **lone)
    yield xyz("sizes", "txt2img", (41, "128x128, 160x128, 128x136"), **lone)
    yield xyz("styles", "txt2img", (30, ["plain", "around"]), width=128, height=128, **lone)
    yield xyz("seeds vary", "txt2img", (4, "3,4"), (6, "4,5"), (26, "0, 0.5"), **vary, **lone)
    yield xyz("RNG source", "txt2img", (39, ["CPU", "NV"]), **lone)
    yield xyz("eta, no fixed seeds", "txt2img", (23, "0, 0.7"), no_fixed_seeds=True, **lone)
    lines = (5, "2,3"), (28, ["Latent", "Lanczos"])
    yield xyz("hires", "txt2img", *lines, **hires_fields(), **lone, draw_legend=False)
    yield xyz("refiner", "txt2img", (37, names[:1]), (38, "0.4,0.7"), **lone)
    yield xyz("batches", "txt2img", (4, "3,4"), batch_size=2, n_iter=2, **lone)
    yield xyz("img2img", "img2img", (4, "3,4"), (24, "0.3, 0.8"), **source(0.5), **lone)


def _others() -> Iterator[Case]:
    for directions in (["left"], ["up", "down"], ["left", "right", "up", "down"]):
        for fill in (0, 1):
            yield case(
                "scripts",
                f"Poor man's outpainting {'+'.join(directions)}, fill {fill}",
                "img2img",
                **source(0.8),
                script_name="Poor man's outpainting",
                script_args=[64, 4, fill, directions],
            )
    changes: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "as it is": ([True, True, "a cat", "a dog", True, 2, True, 1.0, 0.0, False], {}),
        "sigma adjustment": ([True, True, "a cat", "", True, 3, True, 1.5, 0.0, True], {}),
        "half random": ([True, False, "a cat", "", False, 2, False, 2.0, 0.5, False], {}),
        "another sampler": ([False, False, "a cat", "", True, 2, False, 1.0, 0.3, False], {}),
        "batch of 2": ([True, True, "a (cat:1.3)", "", True, 2, True, 1.0, 0.0, False], {"batch_size": 2}),
        "SD 2": (
            [True, True, "a cat", "", True, 5, True, 1.0, 0.0, False],
            {"override_settings": {"sd_model_checkpoint": "tiny-sd2v"}},
        ),
    }
    for name, (args, fields) in changes.items():
        sent = {"script_name": "img2img alternative test", "script_args": ["", *args]}
        yield case(
            "scripts", f"img2img alternative test, {name}", "img2img", **{**source(0.6), **fields, **sent}
        )


def _soft() -> Iterator[Case]:
    inpaint = {"mask": pictures.soft_mask(), "inpainting_fill": 1, "inpaint_full_res": False}
    changes: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "defaults": ([True, 1, 0.5, 4, 0, 0.5, 2], {}),
        "other numbers": ([True, 0.5, 2, 2, 0.6, 1, 4], {}),
        "only enabled": ([True], {}),
        "batch of 2, two batches": ([True, 1, 1, 4, 0, 0.5, 2], {"batch_size": 2, "n_iter": 2}),
        "only masked": ([True, 1, 1, 4, 0.3, 0.5, 2], {"inpaint_full_res": True}),
        "DDIM": ([True, 0, 0.5, 4, 0, 0.5, 2], {"sampler_name": "DDIM"}),
        "latent noise, masks sent along": (
            [True, 1, 0.5, 4, 0, 0.5, 2],
            {"inpainting_fill": 2, "override_settings": {"return_mask": True, "return_mask_composite": True}},
        ),
        "without a mask": ([True, 1, 0.5, 4, 0, 0.5, 2], {"mask": None}),
    }
    for name, (args, fields) in changes.items():
        sent = {"alwayson_scripts": {"soft inpainting": {"args": args}}}
        fields = {**source(0.8), **inpaint, **fields, **sent}
        yield case("scripts", f"soft inpainting, {name}", "img2img", **fields)


def cases() -> Iterator[Case]:
    yield from _soft()
    yield from _of_img2img()
    yield from _matrix()
    yield from _from_file()
    yield from _plots()
    yield from _others()
