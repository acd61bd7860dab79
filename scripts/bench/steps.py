"""Seconds per denoising step: our engine against a plain diffusers loop on the same weights.

Both run in this process, in turn, with the same sampler (Euler), guidance, size and threads. A
plain loop is what diffusers' own pipeline does per step: one U-Net call on both halves of the
guidance, the guidance itself, one step of its Euler scheduler. Aim: a ratio of at most 1.05.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import figures
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.engine import create
from sd_cloud.job import Job, Progress
from sd_cloud.settings import Precision, settings_below

GUIDANCE = 7.0


class Ours:
    """The engine, without the child process around it."""

    def __init__(self, checkpoint: Path, data_dir: Path, *, half: bool) -> None:
        precision = Precision() if half else Precision(no_half=True, precision="full")
        self.worker = create(settings_below(data_dir, precision=precision))
        self.name = checkpoint.name

    def seconds_per_step(self, steps: int, size: int) -> float:
        """From the first step's report to the last one's: encoding and decoding are not in it."""
        moments: list[float] = []

        def report(progress: Progress) -> None:
            if progress.steps and (not moments or progress.step > len(moments) - 1):
                moments.append(time.perf_counter())

        payload = {"prompt": "a cat", "steps": steps, "width": size, "height": size, "sampler_name": "Euler"}
        job = Job("txt2img", {**payload, "cfg_scale": GUIDANCE, "seed": 1}, checkpoint=self.name)
        self.worker.run(job, report, Control())
        return (moments[-1] - moments[0]) / (len(moments) - 1)


class Plain:
    def __init__(self, checkpoint: Path, *, half: bool) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.float16 if half and self.device == "cuda" else torch.float32
        loaded: Any = UNet2DConditionModel.from_single_file(
            str(checkpoint), original_config=str(checkpoint.with_suffix(".yaml")), local_files_only=True
        )
        self.unet = loaded.to(self.device, self.dtype).eval()

    @torch.no_grad()
    def seconds_per_step(self, steps: int, size: int) -> float:
        scheduler: Any = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        scheduler.set_timesteps(steps, device=self.device)
        random = torch.Generator().manual_seed(1)
        width = self.unet.config.cross_attention_dim
        context = torch.randn(2, 77, width, generator=random).to(self.device, self.dtype)
        latents = torch.randn(1, 4, size // 8, size // 8, generator=random).to(self.device, self.dtype)
        latents = latents * scheduler.init_noise_sigma
        started = 0.0
        for number, timestep in enumerate(scheduler.timesteps):
            if number == 1:  # as with ours: from the end of the first step
                self._wait()
                started = time.perf_counter()
            both = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
            without, with_prompt = self.unet(both, timestep, encoder_hidden_states=context).sample.chunk(2)
            noise = without + GUIDANCE * (with_prompt - without)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        self._wait()
        return (time.perf_counter() - started) / (steps - 1)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--checkpoint", type=Path, help="an SD 1 single file with its yaml beside it")
    arguments.add_argument("--size", type=int, default=512, help="sides of the picture, pixels")
    arguments.add_argument("--steps", type=int, default=11)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--half", action="store_true", help="16 bits where there is a GPU")
    given = arguments.parse_args()
    print(figures.machine())
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        if given.checkpoint is None:
            figures.tiny_data_dir(data_dir)
        else:
            (data_dir / "models" / "Stable-diffusion").mkdir(parents=True)
            for file in (given.checkpoint, given.checkpoint.with_suffix(".yaml")):
                shutil.copy(file, data_dir / "models" / "Stable-diffusion")
        checkpoint = next((data_dir / "models" / "Stable-diffusion").glob("*.safetensors"))
        ours, plain = Ours(checkpoint, data_dir, half=given.half), Plain(checkpoint, half=given.half)
        taken: dict[str, list[float]] = {"ours": [], "plain diffusers": []}
        for number in range(given.rounds + 1):
            for name, one in (("ours", ours), ("plain diffusers", plain)):
                seconds = one.seconds_per_step(given.steps, given.size)
                if number:  # the first round warms up
                    taken[name].append(seconds)
    where = f"{plain.device}, {plain.dtype}, {given.rounds} rounds in turn"
    print(f"{checkpoint.name}, {given.size}x{given.size}, {where}")
    for name, seconds_each in taken.items():
        low, middle, high = min(seconds_each), statistics.median(seconds_each), max(seconds_each)
        print(f"{name:18}{middle:9.4f} s/step (median; {low:.4f} to {high:.4f})")
    ratios = [a / b for a, b in zip(taken["ours"], taken["plain diffusers"], strict=True)]
    print(f"{'ratio':18}{statistics.median(ratios):9.3f} (median of the rounds' ratios)")


if __name__ == "__main__":
    main()
