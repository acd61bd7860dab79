"""A data dir with the small models of the golden pictures, and what else the cases call for."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from scripts.fidelity.networks import hypernetwork, write_networks
from scripts.fidelity.sd3 import write_sd3

from sd_cloud.engines.diffusion import taesd
from sd_cloud.engines.diffusion.upscale_models import RRDBNet, SRVGGNetCompact

PLACES = {
    "tiny-?*.safetensors": "models/Stable-diffusion",
    "tiny-?*.yaml": "models/Stable-diffusion",
}
OTHER_PLACES = {
    "tiny-vae.safetensors": "models/VAE",
    "tiny-style.safetensors": "models/Lora",
    "tiny-word.safetensors": "embeddings",
}
UPSCALERS = "models/ESRGAN"
TWINS = "models/Stable-diffusion/twins"
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
SEEING_MORE: dict[str, tuple[int, dict[str, Any]]] = {
    "tiny-inpaint": (
        9,
        {
            "target": "ldm.models.diffusion.ddpm.LatentInpaintDiffusion",
            "conditioning_key": "hybrid",
            "finetune_keys": None,
        },
    ),
    "tiny-edit": (
        8,
        {
            "target": "modules.models.diffusion.ddpm_edit.LatentDiffusion",
            "conditioning_key": "hybrid",
            "first_stage_key": "edited",
            "cond_stage_key": "edit",
        },
    ),
}
OPEN_CLIP = "extensions/tiny-open-clip/scripts/configs.py"
STYLES = """name,prompt,negative_prompt
plain,"oil painting, thick",blurry
around,"a photo of {prompt}, at night","ugly, {prompt}"
"""


def prepare(data_dir: Path, golden: Path, *, t5: bool = False) -> None:
    """Copy the golden models where the webui looks for them, and make what else the cases call for.

    ``t5``: the SD 3 checkpoint has T5 inside.
    """
    for pattern, folder in PLACES.items():
        for file in (golden / "checkpoints").glob(pattern):
            _copy(file, data_dir / OTHER_PLACES.get(file.name, folder))
    _name_paths(data_dir, golden)
    _twins(data_dir)
    for name, (channels, changes) in SEEING_MORE.items():
        _seeing_more(data_dir / "models" / "Stable-diffusion", name, channels, changes)
    _second_lora(data_dir, golden)
    write_networks(data_dir / "models" / "Lora", golden / "checkpoints")
    hypernetworks = data_dir / "models" / "hypernetworks"
    hypernetworks.mkdir(exist_ok=True)
    _save_pickle(hypernetwork(), hypernetworks / "tiny-hyper.pt")
    _upscalers(data_dir / UPSCALERS)
    write_tiny_vaes(data_dir / "models" / "VAE-taesd")
    write_sd3(data_dir, golden / "tinyclip", t5=t5)
    (data_dir / "styles.csv").write_text(STYLES, "utf-8")


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file.name).exists():
        shutil.copy(file, folder)
        (folder / file.name).chmod(0o644)


def _name_paths(data_dir: Path, golden: Path) -> None:
    """The webui wants to be told where the small text encoders' configurations are."""
    for sidecar in data_dir.glob("models/Stable-diffusion/*.yaml"):
        sidecar.write_text(sidecar.read_text("utf-8").replace("@tinyclip", str(golden / "tinyclip")), "utf-8")
    script = data_dir / OPEN_CLIP
    script.parent.mkdir(parents=True, exist_ok=True)
    folder = str(golden / "checkpoints")
    script.write_text(f"import open_clip\n\nopen_clip.add_model_config({folder!r})\n", "utf-8")


def _twins(data_dir: Path) -> None:
    """The two SD 1 checkpoints under one name: they share a yaml, as checkpoints without one do."""
    checkpoints, twins = data_dir / "models" / "Stable-diffusion", data_dir / TWINS
    if twins.exists():
        return
    twins.mkdir()
    shutil.copy(checkpoints / "tiny-a.safetensors", twins / "twin.safetensors")
    shutil.copy(checkpoints / "tiny-a.yaml", twins / "twin.yaml")
    _save_pickle({"state_dict": load_file(checkpoints / "tiny-b.safetensors")}, twins / "twin.ckpt")


def _seeing_more(folder: Path, name: str, channels: int, changes: Mapping[str, Any]) -> None:
    """The first checkpoint with more input channels than the latent has."""
    if (folder / f"{name}.safetensors").exists():
        return
    tensors = load_file(folder / "tiny-a.safetensors")
    first = tensors[FIRST_LAYER]
    more = torch.randn(
        (first.shape[0], channels - 4, 3, 3), generator=torch.Generator().manual_seed(channels)
    )
    tensors[FIRST_LAYER] = torch.cat([first, (more * first.float().std()).to(first)], dim=1)
    save_file(tensors, folder / f"{name}.safetensors")
    sidecar = yaml.safe_load((folder / "tiny-a.yaml").read_text("utf-8"))
    params = sidecar["model"]["params"]
    params["unet_config"]["params"]["in_channels"] = channels
    sidecar["model"]["target"] = changes["target"]
    params |= {key: value for key, value in changes.items() if key != "target"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(sidecar), "utf-8")


def _second_lora(data_dir: Path, golden: Path) -> None:
    second = data_dir / "models" / "Lora" / "tiny-second.safetensors"
    if not second.exists():
        tensors = load_file(golden / "checkpoints" / "tiny-style.safetensors")
        turned = {k: -v.flip(0) if k.endswith("lora_up.weight") else v for k, v in tensors.items()}
        save_file({key: tensor.contiguous() for key, tensor in turned.items()}, second)


def _upscalers(folder: Path) -> None:
    """An RRDBNet and an SRVGGNetCompact that change a picture visibly."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    rrdb = RRDBNet(features=16, growth=32, blocks=2, doublings=2)
    last = rrdb.conv_last  # as drawn it makes next to nothing but grey
    with torch.no_grad():
        last.weight.mul_(20)
        last.bias.fill_(0.5)
    compact = SRVGGNetCompact(features=16, convolutions=3, scale=2)
    _save_pickle({"params_ema": rrdb.state_dict()}, folder / "tiny-x4.pth")
    _save_pickle({"params": compact.state_dict()}, folder / "tiny-compact.pth")


def write_tiny_vaes(folder: Path) -> None:
    """TAESD for SD 1 and SDXL with random weights, under the published files' names."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    torch.manual_seed(5)
    for family in ("taesd", "taesdxl"):
        decoder, encoder = taesd.TinyDecoder(4), taesd.TinyEncoder(4)
        with torch.no_grad():
            decoder.layers[-1].weight.mul_(8)
            decoder.layers[-1].bias.fill_(0.5)
            encoder.layers[-1].weight.mul_(8)
        for half, network, before in (("decoder", decoder, 1), ("encoder", encoder, 0)):
            state = {}
            for key, tensor in network.layers.state_dict().items():
                layer, _, rest = key.partition(".")
                state[f"{int(layer) + before}.{rest}"] = tensor
            _save_pickle(state, folder / f"{family}_{half}.pth")


def _save_pickle(content: dict[Any, Any], file: Path) -> None:
    """A torch file with the same bytes each time, and without the parts that the webui refuses."""
    made = io.BytesIO()
    torch.save(content, made)
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(file, "w") as target:
        for name in sorted(source.namelist()):
            if re.search(r"/(data/\d+|version|byteorder|data\.pkl)$", name):
                target.writestr(zipfile.ZipInfo(f"archive/{name.partition('/')[2]}"), source.read(name))
