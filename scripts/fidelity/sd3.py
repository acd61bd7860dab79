"""A small Stable Diffusion 3 that a webui 1.10.1 loads, too, with LoRAs and an embedding for it.

The webui builds SD 3's text encoders and VAE in the sizes of the released model, whatever a file holds,
and asks a model hub for the vocabularies. :data:`EXTENSION`, in the data dir, tells it smaller sizes and
where the vocabulary is; its code is not touched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.engines.diffusion.sd3_files import Tensors, tiny_sd3

from sd_cloud.engines.diffusion.sd3_text import t5_tokenizer

CONTEXT = 4096  # written out in the webui
VAE = "first_stage_model."
EXTENSION = "extensions/tiny-sd3/scripts/sizes.py"
SIZES = """
from functools import partial

import torch
from transformers import CLIPTokenizer, T5TokenizerFast

from modules.models.sd3 import sd3_cond, sd3_impls

CLIP_VOCABULARY = {clip_vocabulary!r}
T5_VOCABULARY = {t5_vocabulary!r}
clip_tokenizer = CLIPTokenizer.from_pretrained


def from_files(cls, name, *args, **kwargs):
    return clip_tokenizer(CLIP_VOCABULARY if "clip-vit-large" in name else name, *args, **kwargs)


CLIPTokenizer.from_pretrained = classmethod(from_files)
T5TokenizerFast.from_pretrained = classmethod(lambda cls, name: cls(tokenizer_file=T5_VOCABULARY))
for config in (sd3_cond.CLIPL_CONFIG, sd3_cond.CLIPG_CONFIG):
    config.update(hidden_size=64, intermediate_size=128, num_attention_heads=1, num_hidden_layers=3)
sd3_cond.T5_CONFIG.update(d_ff=96, num_layers=2)
sd3_cond.Sd3ClipLG.encode_embedding_init_text = lambda self, text, count: torch.zeros((count, 128))
for name in ("VAEEncoder", "VAEDecoder"):
    setattr(sd3_impls, name, partial(getattr(sd3_impls, name), ch=32, ch_mult=(1, 2, 3, 3)))
"""
BLOCK = "transformer.transformer_blocks"
PICTURE_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 4


def write_sd3(data_dir: Path, clip_vocabulary: Path, *, t5: bool) -> None:
    """The checkpoint and what goes with it. Made once.

    ``t5``: with T5 inside, two layers as wide as the released one's (0.5 GB), which the webui's options then
    turn on.
    """
    script = data_dir / EXTENSION
    if script.exists():
        return
    script.parent.mkdir(parents=True, exist_ok=True)
    t5_vocabulary = script.parents[1] / "t5-tokenizer.json"
    t5_vocabulary.write_text(_as_written_in_2023(json.loads(t5_tokenizer().to_str())), "utf-8")
    checkpoints = data_dir / "models" / "Stable-diffusion"
    tensors = tiny_sd3(context=CONTEXT, t5=t5)
    tensors.pop("text_encoders.t5xxl.transformer.shared.weight", None)  # the same as encoder.embed_tokens
    save_file(tensors, checkpoints / "tiny-sd3.safetensors")
    if t5:
        (data_dir / "config.json").write_text(json.dumps({"sd3_enable_t5": True}), "utf-8")
    loras = data_dir / "models" / "Lora"
    for name, lora in _loras().items():
        save_file(lora, loras / f"tiny-sd3-{name}.safetensors")
    random = torch.Generator().manual_seed(5)
    word = {which: torch.randn(3, 64, generator=random) * 0.3 for which in ("clip_l", "clip_g")}
    save_file(word, data_dir / "embeddings" / "tiny-sd3-word.safetensors")
    vae = {key[len(VAE) :]: value for key, value in tiny_sd3(seed=3).items() if key.startswith(VAE)}
    save_file(vae, data_dir / "models" / "VAE" / "other-sd3-vae.safetensors")
    paths = {"clip_vocabulary": str(clip_vocabulary), "t5_vocabulary": str(t5_vocabulary)}
    script.write_text(SIZES.format(**paths), "utf-8")


def _as_written_in_2023(tokenizer: dict[str, Any]) -> str:
    """For the tokenizers package of the webui, which knows the space before a text by another name."""
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    return json.dumps({**tokenizer, "pre_tokenizer": old, "decoder": old})


def _loras() -> dict[str, Tensors]:
    random = torch.Generator().manual_seed(4)

    def pair(name: str, out: int, into: int, parts: tuple[str, str]) -> Tensors:
        up, down = torch.randn(out, RANK, generator=random), torch.randn(RANK, into, generator=random)
        return {f"{name}.{parts[0]}": up * 0.15, f"{name}.{parts[1]}": down * 0.15}

    diffusers = ("lora_B.weight", "lora_A.weight")
    kohya = ("lora_up.weight", "lora_down.weight")
    picture = {f"{BLOCK}.{block}.attn.{part}": 128 for block in (0, 1) for part in PICTURE_ATTENTION}
    prompt = {
        f"{BLOCK}.0.attn.{part}": 128 for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    }
    flat = {
        "lora_unet_joint_blocks_0_x_block_attn_qkv": (384, 128),
        "lora_unet_joint_blocks_1_x_block_attn_proj": (128, 128),
        "lora_unet_joint_blocks_0_x_block_mlp_fc1": (512, 128),
        "lora_unet_joint_blocks_1_context_block_attn_qkv": (384, 128),
        "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1": (256, 128),
        "lora_unet_joint_blocks_0_context_block_mlp_fc2": (128, 512),
        "lora_unet_context_embedder": (128, CONTEXT),
        "lora_unet_final_layer_linear": (64, 128),
        "lora_unet_final_layer_adaLN_modulation_1": (256, 128),
    }
    made = {
        "diffusers": {**picture, **prompt, "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": 64},
        "no-v": {name: width for name, width in picture.items() if not name.endswith("to_v")},
    }
    loras = {
        which: {
            key: one
            for name, width in names.items()
            for key, one in pair(name, width, width, diffusers).items()
        }
        for which, names in made.items()
    }
    loras["kohya"] = {
        key: one for name, (out, into) in flat.items() for key, one in pair(name, out, into, kohya).items()
    }
    return loras
