"""Which family a single-file checkpoint is of, and the widths of its parts.

Everything that tensors tell is read from the tensors; the sidecar yaml (the webui's LDM form,
``CompVis/stable-diffusion/configs``) adds what they do not: attention heads, v-prediction, the
latent scale, the noise schedule. Nothing the yaml names is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from sd_cloud.errors import CheckpointBroken

Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "sd3"]
Prediction = Literal["epsilon", "v", "flow", "unknown"]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_L = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
XL_FIRST = "conditioner.embedders.0."
XL_SECOND = "conditioner.embedders.1."

INPAINTING_CHANNELS = 9
EDITING_CHANNELS = 8
LATENT_AND_MORE = (4, EDITING_CHANNELS, INPAINTING_CHANNELS)


@dataclass(frozen=True)
class Layout:
    """What has to be known to build a checkpoint's parts.

    ``unet`` and ``vae`` are configurations for diffusers. ``text`` lists the prefixes of the text
    encoders in the order in which their outputs are joined. ``clip_layer`` is the hidden state
    that the first encoder of SDXL gives (0 is the embedding).
    """

    family: Family
    prediction: Prediction
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: tuple[str, ...]
    latent_scale: float
    latent_shift: float = 0.0
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000
    clip_layer: int = 11

    @property
    def edits(self) -> bool:
        """Whether it is an InstructPix2Pix checkpoint: it sees the picture that it edits."""
        return bool(self.unet["in_channels"] == EDITING_CHANNELS)

    @property
    def inpainting(self) -> bool:
        return bool(self.unet["in_channels"] == INPAINTING_CHANNELS)


def read_sidecar(path: Path | None) -> Mapping[str, Any] | None:
    """``model.params`` of a sidecar yaml; ``None`` without one. Raises CheckpointBroken."""
    if path is None or not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointBroken(f"{path.name} is not plain yaml: {str(error).splitlines()[0]}") from error
    params = content.get("model", {}).get("params") if isinstance(content, dict) else None
    if not isinstance(params, dict):
        raise CheckpointBroken(f"{path.name} has no model.params: it is not a checkpoint's configuration")
    return params


def recognise(tensors: Mapping[str, Tensor], sidecar: Mapping[str, Any] | None, name: str) -> Layout:
    """The layout of a checkpoint. ``tensors`` may be on the meta device.

    Raises CheckpointBroken, naming the file and what is missing or unknown.
    """
    family, text = _family(tensors, name)
    params = sidecar or {}
    channels = tensors[f"{UNET}input_blocks.0.0.weight"].shape[1]
    if channels not in LATENT_AND_MORE:
        raise CheckpointBroken(
            f"{name} is of a kind that is not served ({channels} input channels): there are "
            "4, 8 (InstructPix2Pix) and 9 (inpainting)"
        )
    network = _section(params, "unet_config") or _section(params, "network_config")
    unet = unet_config(tensors, UNET, network, family, name)
    scale = params.get("scale_factor", 0.13025 if family.startswith("sdxl") else 0.18215)
    return Layout(
        family=family,
        prediction=_prediction(tensors, params, family, sidecar is not None),
        unet=unet,
        vae=vae_config(tensors, VAE, name),
        text=text,
        latent_scale=float(scale),
        beta_start=float(params.get("linear_start", 0.00085)),
        beta_end=float(params.get("linear_end", 0.012)),
        timesteps=int(params.get("timesteps", 1000)),
        clip_layer=_clip_layer(params),
    )


def _family(tensors: Mapping[str, Tensor], name: str) -> tuple[Family, tuple[str, ...]]:
    if (
        f"{UNET}joint_blocks.0.x_block.attn.qkv.weight" in tensors
        or f"{UNET}x_embedder.proj.weight" in tensors
    ):
        raise CheckpointBroken(f"{name} is a Stable Diffusion 3 checkpoint, which this loader does not build")
    if f"{UNET}input_blocks.0.0.weight" not in tensors:
        raise CheckpointBroken(
            f"{name} is not a checkpoint of a known family: it has no {UNET}input_blocks "
            f"(its first keys: {', '.join(list(tensors)[:3])})"
        )
    if f"{XL_SECOND}model.ln_final.weight" in tensors:
        return "sdxl", (f"{XL_FIRST}transformer.", f"{XL_SECOND}model.")
    if f"{XL_FIRST}model.ln_final.weight" in tensors:
        return "sdxl-refiner", (f"{XL_FIRST}model.",)
    if f"{OPEN_CLIP}ln_final.weight" in tensors:
        return "sd2", (OPEN_CLIP,)
    if any(key.startswith(CLIP_L) for key in tensors):
        return "sd1", (CLIP_L,)
    raise CheckpointBroken(
        f"{name} has no text encoder that is known (cond_stage_model or conditioner): "
        "only full checkpoints can be served, not a U-Net alone"
    )


def _prediction(
    tensors: Mapping[str, Tensor], params: Mapping[str, Any], family: Family, has_sidecar: bool
) -> Prediction:
    if params.get("parameterization") == "v":
        return "v"
    scaling = _section(_section(params, "denoiser_config"), "scaling_config", "target")
    if isinstance(scaling, str) and scaling.rsplit(".", 1)[-1] == "VScaling":
        return "v"
    if has_sidecar:
        return "epsilon"
    if family.startswith("sdxl"):
        return "v" if "v_pred" in tensors else "epsilon"
    inpainting = tensors[f"{UNET}input_blocks.0.0.weight"].shape[1] == INPAINTING_CHANNELS
    return "unknown" if family == "sd2" and not inpainting else "epsilon"


def _section(params: Mapping[str, Any], name: str, part: str = "params") -> Any:
    section = params.get(name)
    return section.get(part) or {} if isinstance(section, dict) else {}


def _clip_layer(params: Mapping[str, Any]) -> int:
    models = _section(params, "conditioner_config").get("emb_models") or [{}]
    first = models[0].get("params", {}) if isinstance(models[0], dict) else {}
    return int(first.get("layer_idx", 11)) if first.get("layer") == "hidden" else 11


def unet_config(
    tensors: Mapping[str, Tensor], prefix: str, network: Mapping[str, Any], family: Family, name: str
) -> dict[str, Any]:
    """Configuration of a UNet2DConditionModel from the tensors of an LDM U-Net.

    ``network`` is the yaml's section on it (or empty): it decides the number of heads. Without
    it, SD 1 has 8 heads everywhere and the others 64 channels in each head.
    """
    try:
        first = tensors[f"{prefix}input_blocks.0.0.weight"]
        base = first.shape[0]
        blocks = _input_blocks(tensors, prefix)
        levels, per_level = _levels(blocks, tensors, prefix)
        widths = tuple(_width(tensors, prefix, level[0]) for level in levels)
        depths = tuple(_depth(tensors, prefix, level[0]) for level in levels)
        middle = _keys_of(tensors, f"{prefix}middle_block.1.transformer_blocks.")
        out_channels = tensors[f"{prefix}out.2.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise CheckpointBroken(f"{name}: its U-Net is incomplete, {error} is missing") from error
    attention = next(
        (key for key in tensors if key.startswith(prefix) and key.endswith("attn2.to_k.weight")), None
    )
    if attention is None:
        raise CheckpointBroken(f"{name}: its U-Net has no cross attention")
    projection = tensors[attention.split("transformer_blocks.")[0] + "proj_in.weight"]
    config: dict[str, Any] = {
        "sample_size": 64,
        "in_channels": first.shape[1],
        "out_channels": out_channels,
        "block_out_channels": widths,
        "layers_per_block": per_level,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "transformer_layers_per_block": tuple(max(depth, 1) for depth in depths),
        "cross_attention_dim": tensors[attention].shape[1],
        "use_linear_projection": projection.ndim == 2,
        "attention_head_dim": _heads(network, family, widths),
    }
    mid_depth = len({key.split(".")[0] for key in middle})
    if mid_depth != max(depths[-1], 1):
        config["transformer_layers_per_block"] = (*config["transformer_layers_per_block"][:-1], mid_depth)
    if base != widths[0]:
        raise CheckpointBroken(f"{name}: its U-Net begins with {base} channels and goes on with {widths[0]}")
    label = tensors.get(f"{prefix}label_emb.0.0.weight")
    if label is not None:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = label.shape[1]
    return config


def _keys_of(tensors: Mapping[str, Tensor], prefix: str) -> list[str]:
    return [key[len(prefix) :] for key in tensors if key.startswith(prefix)]


def _input_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {int(key.split(".")[0]) for key in _keys_of(tensors, f"{prefix}input_blocks.")}
    return max(numbers) + 1


def _levels(count: int, tensors: Mapping[str, Tensor], prefix: str) -> tuple[list[list[int]], int]:
    """Numbers of the input blocks of each resolution, and how many residual blocks each has."""
    levels: list[list[int]] = [[]]
    for number in range(1, count):
        if f"{prefix}input_blocks.{number}.0.op.weight" in tensors:
            levels.append([])
        else:
            levels[-1].append(number)
    return levels, len(levels[0])


def _width(tensors: Mapping[str, Tensor], prefix: str, block: int) -> int:
    return int(tensors[f"{prefix}input_blocks.{block}.0.out_layers.3.weight"].shape[0])


def _depth(tensors: Mapping[str, Tensor], prefix: str, block: int) -> int:
    keys = _keys_of(tensors, f"{prefix}input_blocks.{block}.1.transformer_blocks.")
    return len({key.split(".")[0] for key in keys})


def _heads(network: Mapping[str, Any], family: Family, widths: tuple[int, ...]) -> int | tuple[int, ...]:
    """Number of heads of each level (diffusers calls this ``attention_head_dim``)."""
    head_channels = int(network.get("num_head_channels") or -1)
    heads = int(network.get("num_heads") or -1)
    if head_channels <= 0 and heads <= 0:
        heads, head_channels = (8, -1) if family == "sd1" else (-1, 64)
    return heads if head_channels <= 0 else tuple(width // head_channels for width in widths)


def vae_config(tensors: Mapping[str, Tensor], prefix: str, name: str) -> dict[str, Any]:
    """Configuration of an AutoencoderKL from the tensors of an LDM VAE."""
    try:
        out = tensors[f"{prefix}encoder.conv_out.weight"]
        image = tensors[f"{prefix}encoder.conv_in.weight"]
        downs = _keys_of(tensors, f"{prefix}encoder.down.")
        levels = max(int(key.split(".")[0]) for key in downs) + 1
        blocks = {key.split(".")[2] for key in downs if re.match(r"0\.block\.\d+\.", key)}
        widths = tuple(
            int(tensors[f"{prefix}encoder.down.{level}.block.0.conv2.weight"].shape[0])
            for level in range(levels)
        )
    except (KeyError, ValueError) as error:
        raise CheckpointBroken(f"{name}: its VAE is incomplete, {error} is missing") from error
    return {
        "in_channels": image.shape[1],
        "out_channels": image.shape[1],
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": out.shape[0] // 2,
        "layers_per_block": len(blocks),
        "sample_size": 512,
        "use_quant_conv": f"{prefix}quant_conv.weight" in tensors,
        "use_post_quant_conv": f"{prefix}post_quant_conv.weight" in tensors,
    }
