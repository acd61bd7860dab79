"""A data dir with the small models of the golden pictures, and what else the cases call for."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

PLACES = {
    "tiny-?*.safetensors": "models/Stable-diffusion",
    "tiny-?*.yaml": "models/Stable-diffusion",
}
OTHER_PLACES = {
    "tiny-vae.safetensors": "models/VAE",
    "tiny-style.safetensors": "models/Lora",
    "tiny-word.safetensors": "embeddings",
}
STYLES = """name,prompt,negative_prompt
plain,"oil painting, thick",blurry
around,"a photo of {prompt}, at night","ugly, {prompt}"
"""


def prepare(data_dir: Path, golden: Path) -> None:
    """Copy the golden models where the webui looks for them; write a second LoRA and two styles."""
    for pattern, folder in PLACES.items():
        for file in (golden / "checkpoints").glob(pattern):
            _copy(file, data_dir / OTHER_PLACES.get(file.name, folder))
    second = data_dir / "models" / "Lora" / "tiny-second.safetensors"
    if not second.exists():
        with safe_open(golden / "checkpoints" / "tiny-style.safetensors", "pt") as style:
            tensors = {key: style.get_tensor(key) for key in style.keys()}  # noqa: SIM118 - no mapping
        turned = {k: -v.flip(0) if k.endswith("lora_up.weight") else v for k, v in tensors.items()}
        save_file({key: tensor.contiguous() for key, tensor in turned.items()}, second)
    (data_dir / "styles.csv").write_text(STYLES, "utf-8")


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file.name).exists():
        shutil.copy(file, folder)
