"""Make a small Stable Diffusion 1 checkpoint with random weights: the real layout, 1/45 the size.

For a first start on a machine that has no checkpoint. It draws patterns, not things. The names
and shapes are those of CompVis' single-file checkpoints (latent-diffusion's ``UNetModel`` and
``AutoencoderKL``, transformers' ``CLIPTextModel``), with 32 channels at the widest resolution and
a text encoder of width 64. The same seed gives the same bytes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CHANNELS = 32
WIDTHS = (CHANNELS, 2 * CHANNELS, 4 * CHANNELS, 4 * CHANNELS)
LAYERS = 2  # residual blocks per resolution
TEXT_WIDTH = 64
TEXT_LAYERS = 12
TOKENS, POSITIONS = 49408, 77
LATENT = 4

YAML = f"""\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.012
    timesteps: 1000
    channels: {LATENT}
    image_size: 64
    first_stage_key: jpg
    cond_stage_key: txt
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: {LATENT}
        out_channels: {LATENT}
        model_channels: {CHANNELS}
        channel_mult: [1, 2, 4, 4]
        num_res_blocks: {LAYERS}
        attention_resolutions: [4, 2, 1]
        num_heads: 4
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {TEXT_WIDTH}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {LATENT}
        ddconfig:
          double_z: true
          z_channels: {LATENT}
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: {CHANNELS}
          ch_mult: [1, 2, 4, 4]
          num_res_blocks: {LAYERS}
          attn_resolutions: []
          dropout: 0.0
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""


class Weights:
    """Tensors by name, drawn one after the other from one generator."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._random = torch.Generator().manual_seed(seed)

    def normal(self, name: str, *shape: int, std: float) -> None:
        self.tensors[name] = (torch.randn(shape, generator=self._random) * std).half()

    def norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"] = torch.ones(width).half()
        self.tensors[f"{name}.bias"] = torch.zeros(width).half()

    def layer(
        self, name: str, out: int, into: int, *kernel: int, bias: bool = True, gain: float = 1.0
    ) -> None:
        """A linear layer, or a convolution where ``kernel`` is given."""
        fan_in = into * math.prod(kernel)
        self.normal(f"{name}.weight", out, into, *kernel, std=gain / math.sqrt(fan_in))
        if bias:
            self.tensors[f"{name}.bias"] = torch.zeros(out).half()


def unet(w: Weights, root: str = "model.diffusion_model") -> None:
    time = 4 * CHANNELS
    w.layer(f"{root}.time_embed.0", time, CHANNELS)
    w.layer(f"{root}.time_embed.2", time, time)
    w.layer(f"{root}.input_blocks.0.0", CHANNELS, LATENT, 3, 3)
    skips, width, block = [CHANNELS], CHANNELS, 1
    for level, out in enumerate(WIDTHS):
        for _ in range(LAYERS):
            _unet_residual(w, f"{root}.input_blocks.{block}.0", out, width, time)
            width = out
            if level < 3:
                _transformer(w, f"{root}.input_blocks.{block}.1", width)
            skips.append(width)
            block += 1
        if level < 3:
            w.layer(f"{root}.input_blocks.{block}.0.op", width, width, 3, 3)
            skips.append(width)
            block += 1
    _unet_residual(w, f"{root}.middle_block.0", width, width, time)
    _transformer(w, f"{root}.middle_block.1", width)
    _unet_residual(w, f"{root}.middle_block.2", width, width, time)
    block = 0
    for level in (3, 2, 1, 0):
        for layer in range(LAYERS + 1):
            _unet_residual(w, f"{root}.output_blocks.{block}.0", WIDTHS[level], width + skips.pop(), time)
            width = WIDTHS[level]
            if level < 3:
                _transformer(w, f"{root}.output_blocks.{block}.1", width)
            if level and layer == LAYERS:
                w.layer(f"{root}.output_blocks.{block}.{2 if level < 3 else 1}.conv", width, width, 3, 3)
            block += 1
    w.norm(f"{root}.out.0", CHANNELS)
    w.layer(f"{root}.out.2", LATENT, CHANNELS, 3, 3)


def _unet_residual(w: Weights, name: str, out: int, into: int, time: int) -> None:
    w.norm(f"{name}.in_layers.0", into)
    w.layer(f"{name}.in_layers.2", out, into, 3, 3)
    w.layer(f"{name}.emb_layers.1", out, time)
    w.norm(f"{name}.out_layers.0", out)
    w.layer(f"{name}.out_layers.3", out, out, 3, 3, gain=0.3)
    if out != into:
        w.layer(f"{name}.skip_connection", out, into, 1, 1)


def _transformer(w: Weights, name: str, width: int) -> None:
    inner = f"{name}.transformer_blocks.0"
    w.norm(f"{name}.norm", width)
    w.layer(f"{name}.proj_in", width, width, 1, 1)
    for attention, context in (("attn1", width), ("attn2", TEXT_WIDTH)):
        w.layer(f"{inner}.{attention}.to_q", width, width, bias=False)
        w.layer(f"{inner}.{attention}.to_k", width, context, bias=False)
        w.layer(f"{inner}.{attention}.to_v", width, context, bias=False)
        w.layer(f"{inner}.{attention}.to_out.0", width, width)
    w.layer(f"{inner}.ff.net.0.proj", 8 * width, width)
    w.layer(f"{inner}.ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        w.norm(f"{inner}.norm{number}", width)
    w.layer(f"{name}.proj_out", width, width, 1, 1, gain=0.3)


def vae(w: Weights, root: str = "first_stage_model") -> None:
    encoder, decoder, deepest = f"{root}.encoder", f"{root}.decoder", WIDTHS[-1]
    w.layer(f"{encoder}.conv_in", CHANNELS, 3, 3, 3)
    width = CHANNELS
    for level, out in enumerate(WIDTHS):
        for layer in range(LAYERS):
            _vae_residual(w, f"{encoder}.down.{level}.block.{layer}", out, width)
            width = out
        if level < 3:
            w.layer(f"{encoder}.down.{level}.downsample.conv", width, width, 3, 3)
    _vae_middle(w, f"{encoder}.mid", deepest)
    w.norm(f"{encoder}.norm_out", deepest)
    w.layer(f"{encoder}.conv_out", 2 * LATENT, deepest, 3, 3)
    w.layer(f"{root}.quant_conv", 2 * LATENT, 2 * LATENT, 1, 1)
    w.layer(f"{root}.post_quant_conv", LATENT, LATENT, 1, 1)
    w.layer(f"{decoder}.conv_in", deepest, LATENT, 3, 3)
    _vae_middle(w, f"{decoder}.mid", deepest)
    for level in (3, 2, 1, 0):
        for layer in range(LAYERS + 1):
            _vae_residual(w, f"{decoder}.up.{level}.block.{layer}", WIDTHS[level], width)
            width = WIDTHS[level]
        if level:
            w.layer(f"{decoder}.up.{level}.upsample.conv", width, width, 3, 3)
    w.norm(f"{decoder}.norm_out", CHANNELS)
    w.layer(f"{decoder}.conv_out", 3, CHANNELS, 3, 3, gain=0.5)


def _vae_residual(w: Weights, name: str, out: int, into: int) -> None:
    w.norm(f"{name}.norm1", into)
    w.layer(f"{name}.conv1", out, into, 3, 3)
    w.norm(f"{name}.norm2", out)
    w.layer(f"{name}.conv2", out, out, 3, 3, gain=0.3)
    if out != into:
        w.layer(f"{name}.nin_shortcut", out, into, 1, 1)


def _vae_middle(w: Weights, name: str, width: int) -> None:
    _vae_residual(w, f"{name}.block_1", width, width)
    w.norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        w.layer(f"{name}.attn_1.{part}", width, width, 1, 1)
    _vae_residual(w, f"{name}.block_2", width, width)


def text_encoder(w: Weights, root: str = "cond_stage_model.transformer.text_model") -> None:
    w.normal(f"{root}.embeddings.token_embedding.weight", TOKENS, TEXT_WIDTH, std=0.5)
    w.normal(f"{root}.embeddings.position_embedding.weight", POSITIONS, TEXT_WIDTH, std=0.2)
    w.tensors[f"{root}.embeddings.position_ids"] = torch.arange(POSITIONS).unsqueeze(0)
    for number in range(TEXT_LAYERS):
        layer = f"{root}.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            w.layer(f"{layer}.self_attn.{part}", TEXT_WIDTH, TEXT_WIDTH)
        w.norm(f"{layer}.layer_norm1", TEXT_WIDTH)
        w.norm(f"{layer}.layer_norm2", TEXT_WIDTH)
        w.layer(f"{layer}.mlp.fc1", 2 * TEXT_WIDTH, TEXT_WIDTH)
        w.layer(f"{layer}.mlp.fc2", TEXT_WIDTH, 2 * TEXT_WIDTH)
    w.norm(f"{root}.final_layer_norm", TEXT_WIDTH)
    # Without a bias every embedding would have the mean 0, which emphasis divides by.
    w.normal(f"{root}.final_layer_norm.bias", TEXT_WIDTH, std=0.3)


def write(path: Path, seed: int = 1) -> None:
    """Write the checkpoint and its yaml. The checkpoint appears under its name once it is whole."""
    weights = Weights(seed)
    unet(weights)
    vae(weights)
    text_encoder(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".yaml").write_text(YAML, encoding="utf-8")
    fresh = path.with_suffix(".part")
    save_file(weights.tensors, fresh, metadata={"modelspec.title": "sd-cloud-api tiny, random weights"})
    fresh.chmod(0o644)
    fresh.rename(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
