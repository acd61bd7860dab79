"""A style LoRA in kohya's layout: low-rank changes to attention and the way up, learned on one ink."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .data import Dataset, weights_of
from .export import lora_name
from .sampling import alphas_cumprod
from .schedule import SEED, Log, Threads, generator, learning_rate
from .train import BATCH, SNR_LIMIT, Captioner, Denoiser

RANK = 2
PEAK_RATE = 5e-3


class LowRank(nn.Module):
    """A frozen layer plus `up @ down`; the scale is alpha / rank = 1."""

    def __init__(self, base: nn.Module, down: nn.Linear | nn.Conv2d, up: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.base, self.down, self.up = base.requires_grad_(False), down, up
        nn.init.normal_(self.down.weight, std=1 / RANK)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.base(x) + self.up(self.down(x))
        return changed


def changed_by_lora(name: str, module: nn.Module) -> bool:
    """Every layer of the transformer blocks, and the kernels of the way up, which set colours."""
    if "attentions" in name:
        return isinstance(module, nn.Linear | nn.Conv2d)
    return name.startswith("up_blocks.") and ".resnets." in name and ".conv" in name


def low_rank(layer: nn.Module) -> LowRank:
    if isinstance(layer, nn.Conv2d):
        size, padding = layer.kernel_size, layer.padding
        shrink = nn.Conv2d(layer.in_channels, RANK, size, padding=padding, bias=False)  # type: ignore[arg-type]
        return LowRank(layer, shrink, nn.Conv2d(RANK, layer.out_channels, 1, bias=False))
    assert isinstance(layer, nn.Linear)
    down = nn.Linear(layer.in_features, RANK, bias=False)
    return LowRank(layer, down, nn.Linear(RANK, layer.out_features, bias=False))


def attach(unet: nn.Module) -> dict[str, LowRank]:
    """Put a LowRank in the place of every layer that the LoRA changes."""
    unet.requires_grad_(False)
    chosen = [(name, module) for name, module in unet.named_modules() if changed_by_lora(name, module)]
    attached: dict[str, LowRank] = {}
    for name, module in chosen:
        parent, _, leaf = name.rpartition(".")
        attached[name] = low_rank(module)
        setattr(unet.get_submodule(parent), leaf, attached[name])
    return attached


def train_lora(
    model: Denoiser, dataset: Dataset, latents: Tensor, captioner: Captioner, work: Path, steps: int
) -> dict[str, Tensor]:
    """Kohya weights after `steps`; `latents` are those of the new style."""
    threads = Threads()
    torch.manual_seed(SEED)
    model.requires_grad_(False)
    layers = attach(model.unet)
    trained = [p for low in layers.values() for p in (*low.down.parameters(), *low.up.parameters())]
    optimiser = torch.optim.AdamW(trained, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    alphas = alphas_cumprod().float()
    weights = weights_of(dataset.entries)
    log, losses = Log(work / "logs" / "lora.jsonl"), []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_RATE, warmup=30)
        randomness = generator(20_000_000 + step)
        chosen = torch.multinomial(weights, BATCH, replacement=False, generator=randomness)
        rng = random.Random(SEED + step)
        tokens = captioner.tokens([dataset.entries[i] for i in chosen.tolist()], rng)
        times = torch.randint(1000, (BATCH,), generator=randomness)
        noise = torch.randn(BATCH, 4, 8, 8, generator=randomness)
        alpha = alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guess = model(noisy, times, model.context(tokens))
        snr = (alpha / (1 - alpha)).flatten()
        errors = (guess.float() - noise).square().mean((1, 2, 3))
        loss = (errors * snr.clamp(max=SNR_LIMIT) / snr).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if step % 10 == 9:
            threads.adapt()
        if step % 50 == 49:
            log.write(step=step + 1, loss=sum(losses) / len(losses))
            losses.clear()
    weights_out: dict[str, Tensor] = {}
    for name, low in layers.items():
        key = lora_name(name, "unet")
        weights_out[f"{key}.lora_down.weight"] = low.down.weight.detach().half().contiguous()
        weights_out[f"{key}.lora_up.weight"] = low.up.weight.detach().half().contiguous()
        weights_out[f"{key}.alpha"] = torch.tensor(float(RANK)).half()
    return weights_out


def write_lora(path: Path, weights: dict[str, Tensor], name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata={"ss_base_model_version": "sd_v1", "ss_output_name": name})
