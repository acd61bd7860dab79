"""The checkpoints of one job: its own, the hires pass's, the refiner; which one is at work."""

from __future__ import annotations

from contextlib import ExitStack

from sd_cloud.engines.base import Checkpoint
from sd_cloud.engines.diffusion.conditioning import Conditioner
from sd_cloud.engines.diffusion.job_state import JobState
from sd_cloud.engines.diffusion.latents import Coder
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.taesd import NO_TINY, Tiny
from sd_cloud.engines.diffusion.tiling import circular
from sd_cloud.engines.diffusion.webui_loading import is_built_anew, numbers_drawn


class JobModels:
    """``current`` is the model at work, loaded from ``checkpoint``."""

    current: Model
    checkpoint: Checkpoint

    def __init__(self, state: JobState, while_running: ExitStack) -> None:
        self._state = state
        self._while_running = while_running
        self._tiled: set[int] = set()
        self.checkpoint = state.checkpoint
        self.current = self._load(state.checkpoint)

    def switch(self, checkpoint: Checkpoint) -> bool:
        """Go on with this checkpoint. Whether a webui would build a model anew for it."""
        before = self.current
        self.current, self.checkpoint = self._load(checkpoint), checkpoint
        anew = is_built_anew(before, self.current)
        if anew:
            self._state.merging_ratio = 0.0
            self._state.hypertile.forget()
            self._state.generator.pass_over(numbers_drawn(self.current))
        return anew

    def chosen_coder(self) -> Coder:
        """:meth:`coder`, or what ``sd_vae_encode_method`` and ``sd_vae_decode_method`` say instead."""
        return self.coder(self._state.tiny.coding(self.current))

    def coder(self, tiny: Tiny = NO_TINY) -> Coder:
        """The VAE to use with the model at work."""
        state = self._state
        coder = state.workshop.coder(self.current, state.vae_for(self.checkpoint), tiny)
        if id(coder.vae) not in self._tiled:
            self._tiled.add(id(coder.vae))
            self._while_running.enter_context(circular((coder.vae,), state.request.tiling))
            self._while_running.enter_context(state.hypertile.in_vae(coder.vae))
        return coder

    def conditioner(self) -> Conditioner:
        shop = self._state.workshop
        lora_state = shop.loras.state_of(self.current)
        return Conditioner(self.current, self._state.options, shop.embeddings, shop.texts, lora_state)

    def _load(self, checkpoint: Checkpoint) -> Model:
        """A checkpoint in memory, its convolutions circular when the job tiles."""
        model = self._state.workshop.model(checkpoint, self._state.storage)
        self._state.in_8_bits = model.storage.in_8_bits
        if id(model) not in self._tiled:
            self._tiled.add(id(model))
            tiled = (model.unet, model.vae)
            self._while_running.enter_context(circular(tiled, self._state.request.tiling))
        return model
