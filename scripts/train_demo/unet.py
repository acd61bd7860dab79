"""The U-Net and the text encoder, as small as SD 1.x's layout allows to be useful."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from sd_cloud.engines.diffusion.tokenizer import END, START, VOCABULARY_SIZE, clip_tokenizer

UNET_BLOCKS = (96, 96)
UNET_RES_BLOCKS = 2
UNET_HEADS = 4
TEXT_WIDTH = 64
TEXT_LAYERS = 4
TOKENS = 77


def new_unet() -> UNet2DConditionModel:
    """Cross-attention at the lower of two resolutions only: 4x4 for a 64 px picture."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=UNET_BLOCKS,
        layers_per_block=UNET_RES_BLOCKS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=UNET_HEADS,
        cross_attention_dim=TEXT_WIDTH,
    )


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_WIDTH // 64,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=START,
        eos_token_id=END,
    )


def new_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(text_config())


def tokenise(texts: list[str]) -> Tensor:
    """Token ids [n, 77], padded with the end token as SD 1.x does."""
    return torch.tensor([padded(token_ids(text)) for text in texts])


def token_ids(text: str) -> list[int]:
    return [START, *clip_tokenizer().encode(text)[: TOKENS - 2], END]


def padded(ids: list[int]) -> list[int]:
    return ids + [END] * (TOKENS - len(ids))
