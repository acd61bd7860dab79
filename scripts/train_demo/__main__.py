"""`python -m train_demo all`: from nothing to the demo checkpoints. Every stage goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from . import data, lora, vae
from .curves import draw_curves
from .evaluate import Checkpoint, Reference, load_checkpoint, report
from .export import checkpoint, scaled_vae, unscaled_vae, write_checkpoint
from .schedule import load_state, save_state
from .train import HINT_STEPS, PREVIEW_CAPTIONS, Captioner, Denoiser, train

REPOSITORY = Path(__file__).parents[2]
STAGES = ("data", "vae", "unet", "decoder", "ink", "lora", "export", "evaluate")
MAIN, SECOND, LORA = "emoji", "ink", "cyanotype"
DIVERSE = ("a red apple", "a cat face", "a rocket", "a car", "a balloon")
BLACK_INK = (10, 10, 10)
BLUE_INK = (10, 60, 170)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_demo", description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--work", type=Path, required=True, help="caches, states, logs, sheets")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "demo")
    parser.add_argument("--start", type=Path, help="an exported checkpoint to go on from, in an empty --work")
    parser.add_argument("--vae-steps", type=int, default=2600)
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, default=40000)
    parser.add_argument("--ink-steps", type=int, default=150)
    parser.add_argument("--lora-steps", type=int, default=350)
    return parser.parse_args()


class Training:
    """The stages, each finding the results of the ones before it in `work`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.dataset = data.build(self.work)
        if options.start is not None and not (self.work / "vae.pt").exists():
            self._start_from(load_checkpoint(options.start))

    def _start_from(self, made: Checkpoint) -> None:
        """The states as if this checkpoint had just been trained, optimisers' memory apart."""
        weights = unscaled_vae(made.vae.state_dict())
        save_state(self.work / "vae.pt", {"model": weights, "raw": weights, "step": vae.HALF_SIZE_STEPS})
        model = Denoiser()
        model.unet, model.text = made.unet, made.text
        both = model.state_dict()
        save_state(self.work / "unet.pt", {"model": both, "raw": both, "step": HINT_STEPS})

    def data(self) -> None:
        print(f"{len(self.dataset.entries)} pictures of {len(self.dataset.concepts)} concepts")

    def vae(self) -> None:
        vae.train_vae(self.dataset, self.work, self.options.vae_steps)

    def decoder(self) -> None:
        start = load_state(self.work / "vae.pt")
        assert start is not None, "train the VAE first"
        model = vae.new_vae().eval()
        model.load_state_dict(start["model"])
        cached = vae.cache_latents(model, self.dataset, self.work)
        in_inks = [self.dataset.in_ink(ink) for ink in (BLACK_INK, BLUE_INK)]
        vae.train_decoder(model, self.dataset, cached, in_inks, self.work, self.options.decoder_steps)

    def unet(self) -> None:
        model = self._vae()
        cached = vae.cache_latents(model, self.dataset, self.work)
        train(self.dataset, cached, model, self.work, self.options.unet_steps)

    def ink(self) -> None:
        model = self._vae()
        cached = vae.cache_latents(model, self.dataset, self.work)
        train(
            self.dataset,
            {**cached, "latents": self._in_ink(BLACK_INK)},
            model,
            self.work,
            self.options.ink_steps,
            name="ink",
            start=self.work / "unet.pt",
            peak_rate=4e-4,
        )

    def lora(self) -> None:
        weights = lora.train_lora(
            self._denoiser("unet"),
            self.dataset,
            self._in_ink(BLUE_INK),
            Captioner(self.dataset.entries),
            self.work,
            self.options.lora_steps,
        )
        lora.write_lora(self.options.out / "models" / "Lora" / f"{LORA}.safetensors", weights, LORA)

    def export(self) -> None:
        cached = vae.cache_latents(self._vae(), self.dataset, self.work)
        scaled = scaled_vae(self._vae().state_dict(), cached["mean"], cached["deviation"])
        for name, state in ((MAIN, "unet"), (SECOND, "ink")):
            if not (self.work / f"{state}.pt").exists():
                continue
            model = self._denoiser(state)
            weights = checkpoint(model.unet.state_dict(), model.text.state_dict(), scaled)
            write_checkpoint(self._checkpoint_file(name), weights, "@clip")
        plain = [index for index, entry in enumerate(self.dataset.entries) if not entry.colour]
        reference = Reference(
            cached["latents"][plain], tuple(self.dataset.entries[index].concept for index in plain)
        )
        reference.save(self.options.out / "reference.npz")

    def evaluate(self) -> None:
        made = load_checkpoint(self._checkpoint_file(MAIN))
        reference = Reference.load(self.options.out / "reference.npz")
        print(report(made, reference, self.options.out / "figures.json"))
        images = self.options.out / "images"
        captions = list(PREVIEW_CAPTIONS)
        self._sheet(made, captions, list(range(len(captions))), images / "concepts.png", 8)
        seeds = [seed for _ in DIVERSE for seed in range(8)]
        diverse = [text for text in DIVERSE for _ in range(8)]
        self._sheet(made, diverse, seeds, images / "seeds.png", 8)
        for name in ("vae", "decoder", "unet"):
            log = self.work / "logs" / f"{name}.jsonl"
            if log.exists():
                draw_curves(log, images / f"loss-{name}.png")

    def all(self) -> None:
        for stage in STAGES:
            getattr(self, stage)()

    def _sheet(self, made: Checkpoint, texts: list[str], seeds: list[int], path: Path, columns: int) -> None:
        from .sheets import save_sheet

        save_sheet(path, made.pictures(texts, seeds), columns)

    def _checkpoint_file(self, name: str) -> Path:
        return Path(self.options.out) / "models" / "Stable-diffusion" / f"{name}.safetensors"

    def _vae(self) -> AutoencoderKL:
        """With the decoder trained longest."""
        state = load_state(self.work / "decoder.pt") or load_state(self.work / "vae.pt")
        assert state is not None, "train the VAE first"
        model = vae.new_vae().eval()
        model.load_state_dict(state["model"])
        return model

    def _denoiser(self, name: str) -> Denoiser:
        state = load_state(self.work / f"{name}.pt")
        assert state is not None, f"train {name} first"
        model = Denoiser().eval()
        model.load_state_dict(state["model"])
        return model

    def _in_ink(self, ink: tuple[int, int, int]) -> torch.Tensor:
        """Latents of the same drawings in one ink, in the scale of the cached ones."""
        model = self._vae()
        cached = vae.cache_latents(model, self.dataset, self.work)
        raw = vae.encode_all(model, self.dataset.in_ink(ink))
        scaled: torch.Tensor = (raw - cached["mean"][:, None, None]) / cached["deviation"][:, None, None]
        return scaled


def main() -> None:
    options = arguments()
    getattr(Training(options), options.stage)()


if __name__ == "__main__":
    main()
