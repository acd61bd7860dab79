"""Run by Forge's own Python in its folder: two checkpoints and a VAE that its loader recognizes.

Forge tells SD 1.x by the U-Net's width and builds text encoder and VAE in their real sizes. The U-Net is
as shallow as can be; all weights are random.

    PYTHONPATH=.:repositories/huggingface_guess:packages_3rdparty python checkpoints.py DATA_DIR --always-cpu
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from backend.nn.unet import IntegratedUNet2DConditionModel
from backend.nn.vae import IntegratedAutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

DATA_DIR = Path(sys.argv[1])
SIZES = Path("backend/huggingface/runwayml/stable-diffusion-v1-5")
UNET = {
    **{"in_channels": 4, "out_channels": 4, "model_channels": 320, "context_dim": 768, "num_heads": 8},
    **{"num_res_blocks": [1, 1], "channel_mult": [1, 1], "use_spatial_transformer": True},
    **{"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1},
}


def tensors_of(prefix: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    halved = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    return {prefix + name: value.contiguous() for name, value in halved.items()}


def made(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    unet = IntegratedUNet2DConditionModel.from_config(UNET)
    for weight in unet.parameters():
        if weight.dim() > 1 and not weight.any():
            torch.nn.init.normal_(weight, 0, 0.02)  # what training starts at zero
    vae = IntegratedAutoencoderKL.from_config(IntegratedAutoencoderKL.load_config(SIZES / "vae"))
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(SIZES / "text_encoder"))
    return {
        **tensors_of("model.diffusion_model.", unet),
        **tensors_of("first_stage_model.", vae),
        **tensors_of("cond_stage_model.transformer.", text),
    }


def main() -> None:
    for folder in ("Stable-diffusion", "VAE"):
        (DATA_DIR / "models" / folder).mkdir(parents=True, exist_ok=True)
    a, b = made(1), made(2)
    save_file(a, DATA_DIR / "models/Stable-diffusion/forge-a.safetensors")
    save_file(b, DATA_DIR / "models/Stable-diffusion/forge-b.safetensors")
    prefix = "first_stage_model."
    vae = {name[len(prefix) :]: value for name, value in b.items() if name.startswith(prefix)}
    save_file(vae, DATA_DIR / "models/VAE/forge-vae.safetensors")


main()
