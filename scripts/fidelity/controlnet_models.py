"""Control models of every kind for the small checkpoints, and a checkpoint as wide as a real one.

sd-webui-controlnet builds a ControlNet 320 channels wide whatever its file says. So either its copy is
told the small checkpoints' widths, or the checkpoint is wide: the small one stretched, each weight of its
U-Net repeated along both sides with noise between the copies, so that it draws about what that draws.
Wide files take 5 GB on the disk, in half precision.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

UNET = "model.diffusion_model."
ENCODER = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
NOISE = 0.3
"""Of a stretched weight, beside its size."""
CONTEXT = 64
"""Width of the small SD 1 checkpoints' prompts, which their wide form keeps."""
HINT = ((3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256))


def prepare(data_dir: Path, golden: Path, extension: Path | None, *, wide: bool) -> None:
    """Add control models to a data dir that has the small checkpoints, and the extension to serve them.

    ``extension``: a folder with sd-webui-controlnet, copied; None for our own service.
    """
    checkpoints, models = (data_dir / "models" / name for name in ("Stable-diffusion", "ControlNet"))
    models.mkdir(parents=True, exist_ok=True)
    if wide:
        write_wide_sd1(checkpoints, golden)
        write_sd1_models(Maker(checkpoints / "wide.safetensors", models))
    else:
        write_sd1_models(Maker(checkpoints / "tiny-a.safetensors", models))
        sd2 = Maker(checkpoints / "tiny-sd2v.safetensors", models)
        sd2.save(sd2.controlnet(), "controlnet_sd2")
        write_sdxl_models(Maker(checkpoints / "tiny-sdxl.safetensors", models))
    if extension is not None:
        copy = data_dir / "extensions" / "sd-webui-controlnet"
        shutil.copytree(extension, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        if not wide:
            narrow(copy)


def stretched(tensor: Tensor, sides: tuple[int, ...], random: torch.Generator) -> Tensor:
    """``tensor`` with longer sides: its values repeated, noise added, its sums about the same."""
    old = tuple(tensor.shape)
    made = tensor.float()
    for side, (before, after) in enumerate(zip(old, sides, strict=True)):
        if before != after:
            made = made.index_select(side, torch.arange(after) * before // after)
    if made.ndim < 2:
        return (made + torch.randn(made.shape, generator=random) * 0.02).half()
    share = old[1] / sides[1]
    noise = torch.randn(made.shape, generator=random)
    return (made * share + noise * (NOISE * float(tensor.float().std()) * share**0.5)).half()


def _sd1_sides(key: str, shape: torch.Size) -> tuple[int, ...]:
    sides = [10 * side for side in shape[:2]]
    if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
        sides[1] = CONTEXT
    if key.endswith("input_blocks.0.0.weight"):
        sides[1] = shape[1]
    if ".out.2." in key:
        sides[0] = shape[0]
    return (*sides, *shape[2:])


def write_wide_sd1(checkpoints: Path, golden: Path) -> None:
    """``wide.safetensors``: SD 1's own widths around the small checkpoint's encoders."""
    random = torch.Generator().manual_seed(17)
    tensors = load_file(golden / "checkpoints" / "tiny-a.safetensors")
    for key, tensor in tensors.items():
        if key.startswith(UNET):
            tensors[key] = stretched(tensor, _sd1_sides(key, tensor.shape), random)
    save_file(tensors, checkpoints / "wide.safetensors")
    content = yaml.safe_load((checkpoints / "tiny-a.yaml").read_text("utf-8"))
    content["model"]["params"]["unet_config"]["params"] |= {"model_channels": 320, "num_heads": 8}
    (checkpoints / "wide.yaml").write_text(yaml.safe_dump(content), "utf-8")


class Maker:
    """Control models for one checkpoint, written into a folder."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        tensors = load_file(checkpoint)
        self.unet = {
            key[len(UNET) :]: value
            for key, value in tensors.items()
            if key.startswith(tuple(UNET + part for part in ENCODER))
        }
        self.width = int(self.unet["input_blocks.0.0.weight"].shape[0])
        self.folder = folder
        self.random = torch.Generator().manual_seed(23)

    def draw(self, *shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.random) * size

    def layer(self, name: str, *shape: int, size: float = 1.0) -> Tensors:
        """A layer's weight, about keeping the size of what it gets, and its bias."""
        inputs = torch.Size(shape[1:]).numel()
        weight = self.draw(*shape, size=size * inputs**-0.5)
        return {f"{name}.weight": weight.half(), f"{name}.bias": self.draw(shape[0], size=0.02).half()}

    def moved(self, tensor: Tensor) -> Tensor:
        """A weight of the U-Net as training might have left it."""
        size = 0.1 * float(tensor.float().std()) if tensor.ndim > 1 else 0.02
        return (tensor.float() + self.draw(*tensor.shape, size=size)).half()

    def own_parts(self) -> Tensors:
        """What a ControlNet has beside the U-Net's encoder."""
        made: Tensors = {}
        for place, (before, after) in enumerate((*HINT, (256, self.width))):
            made |= self.layer(f"input_hint_block.{2 * place}", after, before, 3, 3, size=1.4)
        for name, width in self.outputs():
            made |= self.layer(name, width, width, 1, 1, size=0.3)
        return made

    def outputs(self) -> list[tuple[str, int]]:
        """Names and widths of the convolutions behind each block of the encoder."""
        widths = {0: self.width}
        for key, value in self.unet.items():
            if found := re.fullmatch(r"input_blocks\.(\d+)\.0\.(out_layers\.3|op)\.weight", key):
                widths[int(found[1])] = int(value.shape[0])
        names = [(f"zero_convs.{place}.0", widths[place]) for place in sorted(widths)]
        return [*names, ("middle_block_out.0", names[-1][1])]

    def controlnet(self) -> Tensors:
        return {**{key: self.moved(value) for key, value in self.unet.items()}, **self.own_parts()}

    def control_lora(self, rank: int) -> Tensors:
        made: Tensors = {"lora_controlnet": torch.zeros(()), **self.own_parts()}
        for key, value in self.unet.items():
            name, part = key.rsplit(".", 1)
            if part == "bias" or value.ndim < 2:
                made[key] = self.moved(value)
                continue
            ones = (1,) * (value.ndim - 2)
            size = 0.2 * float(value.float().std())
            made[f"{name}.up"] = self.draw(value.shape[0], rank, *ones).half()
            made[f"{name}.down"] = self.draw(rank, *value.shape[1:], size=size * rank**-0.5).half()
        return made

    def union(self, kinds: int) -> Tensors:
        """A ControlNet Union, under the names of its published file but for the ControlNet's own."""
        width, embedding = self.width, int(self.unet["time_embed.2.bias"].shape[0])
        layer = "transformer_layes.0"
        attention = self.layer("in_proj", 3 * width, width)
        made = {
            **self.controlnet(),
            "task_embedding": self.draw(kinds, width).half(),
            f"{layer}.attn.in_proj_weight": attention["in_proj.weight"],
            f"{layer}.attn.in_proj_bias": attention["in_proj.bias"],
            **self.layer(f"{layer}.attn.out_proj", width, width),
            **self.layer(f"{layer}.mlp.c_fc", 4 * width, width),
            **self.layer(f"{layer}.mlp.c_proj", width, 4 * width),
            **self.layer("spatial_ch_projs", width, width),
            **self.layer("control_add_embedding.linear_1", embedding, 256 * kinds),
            **self.layer("control_add_embedding.linear_2", embedding, embedding),
        }
        for norm in ("ln_1", "ln_2"):
            made[f"{layer}.{norm}.weight"] = (1 + self.draw(width, size=0.1)).half()
            made[f"{layer}.{norm}.bias"] = self.draw(width, size=0.1).half()
        return made

    def lllite(self) -> Tensors:
        """A network for every attention projection of the encoder and the middle."""
        made: Tensors = {}
        for number, (key, value) in enumerate(sorted(self.unet.items())):
            if not re.search(r"(attn1\.to_[qkv]|attn2\.to_q)\.weight", key):
                continue
            name = "lllite_unet_" + key.removesuffix(".weight").replace(".", "_")
            inputs, depth = int(value.shape[1]), number % 3
            sides = ((4, 2), (4, 4), (4, 4, 2))[depth]
            for place, side in enumerate(sides):
                before, after = 16 if place else 3, 32 if place == len(sides) - 1 else 16
                made |= self.layer(f"{name}.conditioning1.{2 * place}", after, before, side, side)
            made |= self.layer(f"{name}.down.0", 16, inputs)
            made |= self.layer(f"{name}.mid.0", 16, 16 + 32)
            made |= self.layer(f"{name}.up.0", inputs, 16, size=0.3)
        return made

    def light_adapter(self) -> Tensors:
        widths = [self.width * times for times in (1, 2, 4, 4)]
        made: Tensors = {}
        for level, after in enumerate(widths):
            inside = after // 4
            before = widths[level - 1] if level else 192
            made |= self.layer(f"body.{level}.in_conv", inside, before, 1, 1)
            made |= self.layer(f"body.{level}.out_conv", after, inside, 1, 1, size=0.5)
            for place in range(4):
                for part in ("block1", "block2"):
                    made |= self.layer(f"body.{level}.body.{place}.{part}", inside, inside, 3, 3)
        return made

    def save(self, tensors: Mapping[str, Tensor], name: str) -> None:
        kept = {key: value.contiguous() for key, value in tensors.items()}
        save_file(kept, self.folder / f"{name}.safetensors")


def write_sd1_models(maker: Maker) -> None:
    whole = maker.controlnet()
    named = {f"control_model.{key}": value for key, value in whole.items()}
    for name in ("control_v11p_sd15_canny", "control_v11e_sd15_shuffle"):
        maker.save(named, name)
    difference = {
        key: (value.float() - maker.unet[key].float()).half() if key in maker.unet else value
        for key, value in whole.items()
    }
    maker.save({**difference, "difference": torch.tensor(1)}, "difference_sd15_canny")
    renamed = convert_controlnet_checkpoint(dict(whole), {"layers_per_block": 2})
    maker.save({key: value for key, value in renamed.items() if value is not None}, "diffusers_sd15_canny")
    maker.save(maker.control_lora(4), "control_lora_sd15")
    maker.save(maker.lllite(), "lllite_sd15")
    maker.save(maker.light_adapter(), "t2iadapter_light_sd15")


def write_sdxl_models(maker: Maker) -> None:
    maker.save(maker.controlnet(), "controlnet_sdxl")
    maker.save(maker.control_lora(4), "control_lora_sdxl")
    maker.save(maker.union(8), "union_sdxl")
    maker.save(maker.union(6), "union_six_sdxl")
    maker.save(maker.lllite(), "lllite_sdxl")


NARROWER = {
    "scripts/controlnet_model_guess.py": (
        ("'model_channels': 320", "'model_channels': 32"),
        ("'channels': [320, 640, 1280, 1280]", "'channels': [32, 64, 128, 128]"),
        ('"num_heads": 8', '"num_heads": 4'),
        ("'adm_in_channels': 2816", "'adm_in_channels': 1664"),
        ("'transformer_depth': [0, 2, 10]", "'transformer_depth': [0, 2, 2]"),
        ("'transformer_depth_middle': 10", "'transformer_depth_middle': 2"),
        ("'channel_mult': [1, 2, 4],", "'channel_mult': [1, 2, 3],"),
        ("'context_dim': 2048", "'context_dim': 192"),
        ('"num_head_channels": 64', '"num_head_channels": 16'),
        ("transformer_blocks.9.norm3", "transformer_blocks.1.norm3"),
        (
            "            logger.info('controlnet_default_config')\n",
            "            linear = state_dict['input_blocks.1.1.proj_in.weight'].ndim == 2\n"
            "            config['num_heads'] = 8 if linear else 4\n",
        ),
    ),
    "scripts/cldm.py": (
        ("num_trans_channel = 320", "num_trans_channel = 32"),
        ("num_proj_channel = 320", "num_proj_channel = 32"),
    ),
}
"""What sd-webui-controlnet has fixed about real checkpoints, and what it is in the small ones. Those of SD 2,
which have linear layers where SD 1 has convolutions, keep its number of heads."""


def narrow(extension: Path) -> None:
    """Let a copy of sd-webui-controlnet build control models for the small checkpoints."""
    for name, changes in NARROWER.items():
        file = extension / name
        text = file.read_text("utf-8")
        for before, after in changes:
            if before not in text:
                raise SystemExit(f"{file} has no {before!r}: it is not the version of commit 56cec5b")
            text = text.replace(before, after)
        file.write_text(text, "utf-8")
