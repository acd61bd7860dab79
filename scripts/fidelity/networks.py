"""Small networks of every kind that a LoRA file may hold, for the small checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Make = Callable[["Layer"], Tensors]
UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
#: Names in LoRA files, and the weights of an SD 1 checkpoint they stand for.
LINEAR = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    ),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2": (
        f"{UNET}middle_block.1.transformer_blocks.0.ff.net.2"
    ),
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0": (
        f"{UNET}output_blocks.11.1.transformer_blocks.0.attn2.to_out.0"
    ),
    "lora_te_text_model_encoder_layers_3_mlp_fc1": f"{TEXT}encoder.layers.3.mlp.fc1",
    "lora_te_text_model_encoder_layers_5_self_attn_v_proj": f"{TEXT}encoder.layers.5.self_attn.v_proj",
}
CONVOLUTIONS = {
    "lora_unet_down_blocks_0_resnets_0_conv1": f"{UNET}input_blocks.1.0.in_layers.2",
    "lora_unet_up_blocks_3_resnets_1_conv2": f"{UNET}output_blocks.10.0.out_layers.3",
}
SDXL_TEXT = "conditioner.embedders.1.model.transformer.resblocks."
SDXL = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
        f"{UNET}input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    ),
    "lora_unet_output_blocks_3_0_in_layers_2": f"{UNET}output_blocks.3.0.in_layers.2",
    "lora_te1_text_model_encoder_layers_2_mlp_fc1": (
        "conditioner.embedders.0.transformer.text_model.encoder.layers.2.mlp.fc1"
    ),
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": f"{SDXL_TEXT}0.mlp.c_fc",
    **{
        f"lora_te2_text_model_encoder_layers_1_self_attn_{part}_proj": f"{SDXL_TEXT}1.attn.out_proj"
        for part in ("q", "k", "v", "out")
    },
    # Of no effect in the webui: it changes an OpenCLIP's attention as a whole only.
    "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": f"{SDXL_TEXT}0.attn.out_proj",
}
NORMS = {
    "lora_unet_down_blocks_0_resnets_0_norm1": f"{UNET}input_blocks.1.0.in_layers.0",
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_norm2": (
        f"{UNET}output_blocks.11.1.transformer_blocks.0.norm2"
    ),
}
RANK = 4


class Layer:
    """A layer's weight, and random tensors about as large as a change of it may be."""

    def __init__(self, weight: Tensor, seed: int) -> None:
        self.weight = weight.float()
        self._random = torch.Generator().manual_seed(seed)

    @property
    def rows(self) -> int:
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        return self.weight.shape[1]

    def draw(self, *shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self._random) * size

    @property
    def size(self) -> float:
        return float(self.weight.std()) * 0.5


def write_networks(folder: Path, checkpoints: Path) -> None:
    """One file for each kind, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {**KINDS, "sdxl": (_locon, SDXL)}
    for name, (make, layers) in kinds.items():
        checkpoint = "tiny-sdxl" if name == "sdxl" else "tiny-a"
        weights = load_file(checkpoints / f"{checkpoint}.safetensors")
        tensors: Tensors = {}
        for number, (key, own) in enumerate(layers.items()):
            parts = make(Layer(weights[f"{own}.weight"], number))
            tensors |= {f"{key}.{part}": value.contiguous() for part, value in parts.items()}
        save_file(tensors, folder / f"tiny-{name}.safetensors")


def _locon(layer: Layer) -> Tensors:
    kernel = layer.weight.shape[2:]
    return {
        "lora_down.weight": layer.draw(RANK, layer.columns, *kernel, size=layer.size),
        "lora_up.weight": layer.draw(layer.rows, RANK, *(1 for _ in kernel)),
        "alpha": torch.tensor(2.0),
    }


def _tucker(layer: Layer) -> Tensors:
    return {
        "lora_down.weight": layer.draw(RANK, layer.columns, 1, 1),
        "lora_mid.weight": layer.draw(RANK, RANK, *layer.weight.shape[2:], size=layer.size),
        "lora_up.weight": layer.draw(layer.rows, RANK, 1, 1, size=0.5),
        "alpha": torch.tensor(2.0),
    }


def _dora(layer: Layer) -> Tensors:
    norms = layer.weight.transpose(0, 1).flatten(1).norm(dim=1)
    scale = norms.reshape(1, -1, *(1 for _ in layer.weight.shape[2:]))
    return {**_locon(layer), "dora_scale": scale * (1 + 0.2 * layer.draw(*scale.shape))}


def _loha(layer: Layer) -> Tensors:
    inputs = layer.weight[0].numel()
    return {
        "hada_w1_a": layer.draw(layer.rows, RANK),
        "hada_w1_b": layer.draw(RANK, inputs, size=layer.size),
        "hada_w2_a": layer.draw(layer.rows, RANK, size=0.5),
        "hada_w2_b": layer.draw(RANK, inputs, size=0.5),
        "alpha": torch.tensor(3.0),
    }


def _loha_tucker(layer: Layer) -> Tensors:
    found: Tensors = {"alpha": torch.tensor(3.0)}
    for side in ("1", "2"):
        found |= {
            f"hada_t{side}": layer.draw(RANK, RANK, *layer.weight.shape[2:], size=layer.size * 2),
            f"hada_w{side}_a": layer.draw(RANK, layer.rows),
            f"hada_w{side}_b": layer.draw(RANK, layer.columns, size=0.5),
        }
    return found


def _lokr(layer: Layer) -> Tensors:
    return {
        "lokr_w1": layer.draw(4, 4),
        "lokr_w2_a": layer.draw(layer.rows // 4, RANK, size=0.5),
        "lokr_w2_b": layer.draw(RANK, layer.weight[0].numel() // 4, size=layer.size),
        "alpha": torch.tensor(3.0),
    }


def _lokr_whole(layer: Layer) -> Tensors:
    kernel = layer.weight.shape[2:]
    return {
        "lokr_w1": layer.draw(4, 4),
        "lokr_w2": layer.draw(layer.rows // 4, layer.columns // 4, *kernel, size=layer.size),
        "alpha": torch.tensor(3.0),
    }


def _ia3_inputs(layer: Layer) -> Tensors:
    return {"weight": layer.draw(layer.columns, size=0.3), "on_input": torch.tensor(True)}


def _ia3_outputs(layer: Layer) -> Tensors:
    return {"weight": layer.draw(layer.rows, size=0.3), "on_input": torch.tensor(False)}


def _full(layer: Layer) -> Tensors:
    return {"diff": layer.draw(*layer.weight.shape, size=layer.size), "alpha": torch.tensor(3.0)}


def _full_and_bias(layer: Layer) -> Tensors:
    return {**_full(layer), "diff_b": layer.draw(layer.rows, size=0.1)}


def _norm(layer: Layer) -> Tensors:
    return {"w_norm": layer.draw(layer.rows, size=0.3), "b_norm": layer.draw(layer.rows, size=0.3)}


def _glora(layer: Layer) -> Tensors:
    return {
        "a1.weight": layer.draw(RANK, layer.columns, size=0.3),
        "a2.weight": layer.draw(layer.columns, RANK, size=0.3),
        "b1.weight": layer.draw(RANK, layer.columns, size=layer.size),
        "b2.weight": layer.draw(layer.rows, RANK),
        "alpha": torch.tensor(3.0),
    }


def _oft(layer: Layer) -> Tensors:
    return {"oft_blocks": layer.draw(4, layer.rows // 4, layer.rows // 4, size=0.2)}


def _oft_limited(layer: Layer) -> Tensors:
    return {
        **_oft(layer),
        "alpha": torch.tensor(0.02),
        "rescale": 1 + layer.draw(layer.rows, *(1 for _ in layer.weight.shape[1:]), size=0.1),
    }


def _oft_diag(layer: Layer) -> Tensors:
    turns, _ = torch.linalg.qr(layer.draw(layer.rows // 8, 8, 8))
    return {"oft_diag": turns}


def _boft(layer: Layer) -> Tensors:
    return {"oft_blocks": layer.draw(3, layer.rows // 8, 8, 8, size=0.2)}


LAYERS: Mapping[str, str] = {**LINEAR, **CONVOLUTIONS}
WITH_BIAS = {name: own for name, own in LAYERS.items() if "attn1_to_q" not in name}
KINDS: dict[str, tuple[Make, Mapping[str, str]]] = {
    "locon": (_locon, LAYERS),
    "tucker": (_tucker, CONVOLUTIONS),
    "dora": (_dora, LAYERS),
    "loha": (_loha, LAYERS),
    "loha-tucker": (_loha_tucker, CONVOLUTIONS),
    "lokr": (_lokr, LAYERS),
    "lokr-whole": (_lokr_whole, LAYERS),
    "ia3-inputs": (_ia3_inputs, LINEAR),
    "ia3-outputs": (_ia3_outputs, LINEAR),
    "full": (_full, LAYERS),
    "full-bias": (_full_and_bias, WITH_BIAS),
    "norm": (_norm, NORMS),
    "glora": (_glora, LINEAR),
    "oft": (_oft, LAYERS),
    "oft-limited": (_oft_limited, LAYERS),
    "oft-diag": (_oft_diag, LAYERS),
    "boft": (_boft, LAYERS),
}


def hypernetwork() -> dict[Any, Any]:
    """What the webui's training writes, for keys and values of 64 channels."""
    layer = Layer(torch.ones(64, 64), 7)
    states = []
    for _ in range(2):
        state = {"linear.0.weight": (128, 64), "linear.0.bias": (128,)}
        state |= {"linear.2.weight": (64, 128), "linear.2.bias": (64,)}
        states.append({name: layer.draw(*shape, size=0.1) for name, shape in state.items()})
    return {64: tuple(states), "layer_structure": [1, 2, 1], "activation_func": "relu", "name": "tiny-hyper"}
