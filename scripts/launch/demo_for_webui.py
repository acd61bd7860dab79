"""Copy the demo's checkpoints into a stable-diffusion-webui: `demo_for_webui.py WEBUI_OR_DATA_DIR`.

The webui builds a checkpoint's text encoder from a folder that the yaml names (config and vocabulary).
The demo's yaml says `@clip` there: this writes such a folder and a yaml with its path.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib import resources
from pathlib import Path

from safetensors import safe_open

from sd_cloud.engines.diffusion.tokenizer import clip_tokenizer

MODELS = Path(__file__).resolve().parents[2] / "demo" / "models"
STANDS_FOR_THE_FOLDER = "@clip"
TEXT_MODEL = "cond_stage_model.transformer.text_model."
HEAD_WIDTH = 64
TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": "<|endoftext|>",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "model_max_length": 77,
    "do_lower_case": True,
}


def text_config(checkpoint: Path) -> dict[str, object]:
    """transformers' CLIPTextConfig of a checkpoint, read from its tensors' shapes."""
    with safe_open(checkpoint, "pt") as weights:
        names = list(weights.keys())

        def shape(name: str) -> list[int]:
            return list(weights.get_slice(TEXT_MODEL + name).get_shape())

        words, width = shape("embeddings.token_embedding.weight")
        positions = shape("embeddings.position_embedding.weight")[0]
        inner = shape("encoder.layers.0.mlp.fc1.weight")[0]
    layer = re.compile(re.escape(TEXT_MODEL) + r"encoder\.layers\.(\d+)\.")
    layers = {match[1] for name in names if (match := layer.match(name))}
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "vocab_size": words,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": positions,
        "hidden_act": "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 1,
    }


def write_clip_folder(folder: Path, checkpoint: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = resources.files("sd_cloud.engines.diffusion").joinpath("data")
    merges = data.joinpath("clip_merges.txt").read_text("utf-8").split("\n", 1)[1]
    (folder / "config.json").write_text(json.dumps(text_config(checkpoint), indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER, indent=1))
    (folder / "vocab.json").write_text(json.dumps(clip_tokenizer().ids, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")


def install(target: Path) -> list[Path]:
    """Put checkpoints, LoRA and the folder below `target`/models; the checkpoints' new places."""
    placed = []
    for kind in ("Stable-diffusion", "Lora"):
        (target / "models" / kind).mkdir(parents=True, exist_ok=True)
        for file in sorted((MODELS / kind).glob("*.safetensors")):
            placed.append(Path(shutil.copy(file, target / "models" / kind)))
    for file in sorted((MODELS / "Stable-diffusion").glob("*.safetensors")):
        folder = target / "models" / "demo-clip" / file.stem
        write_clip_folder(folder, file)
        sidecar = file.with_suffix(".yaml").read_text()
        named = sidecar.replace(f"'{STANDS_FOR_THE_FOLDER}'", json.dumps(str(folder.resolve())))
        (target / "models" / "Stable-diffusion" / f"{file.stem}.yaml").write_text(named)
    return placed


def main() -> int:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "models").is_dir():
        print("usage: demo_for_webui.py FOLDER, a webui or its --data-dir: what has models/", file=sys.stderr)
        return 2
    for path in install(Path(sys.argv[1])):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
