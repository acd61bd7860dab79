"""What an engine keeps between jobs: what is installed, what is loaded, what is merged and encoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sd_cloud.engines.base import Catalogue, Checkpoint, ModelFile
from sd_cloud.engines.diffusion import catalogue as catalogues
from sd_cloud.engines.diffusion.conditioning import TextCache
from sd_cloud.engines.diffusion.controlnet.shelf import ControlNetShelf
from sd_cloud.engines.diffusion.eight_bits import PLAIN, Storage
from sd_cloud.engines.diffusion.embeddings import EmbeddingShelf
from sd_cloud.engines.diffusion.hashes import HashBook
from sd_cloud.engines.diffusion.hypernetworks import HypernetShelf
from sd_cloud.engines.diffusion.infotext import Names
from sd_cloud.engines.diffusion.interrogate.run import InterrogationShelf
from sd_cloud.engines.diffusion.latents import Coder
from sd_cloud.engines.diffusion.lora import LoraShelf
from sd_cloud.engines.diffusion.model import Model, Placement
from sd_cloud.engines.diffusion.residency import Residents, release_memory
from sd_cloud.engines.diffusion.taesd import NO_TINY, Tiny, TinyShelf
from sd_cloud.errors import BadRequest
from sd_cloud.settings import Settings

SHORT_HASH_DIGITS = 10


@dataclass
class Workshop:
    """One per engine process."""

    settings: Settings
    placement: Placement
    hashes: HashBook = field(init=False)
    residents: Residents = field(init=False)
    loras: LoraShelf = field(init=False)
    hypernetworks: HypernetShelf = field(init=False)
    embeddings: EmbeddingShelf = field(init=False)
    controlnets: ControlNetShelf = field(init=False)
    texts: TextCache = field(init=False)
    tiny_vaes: TinyShelf = field(init=False)
    interrogators: InterrogationShelf = field(init=False)

    def __post_init__(self) -> None:
        self.hashes = catalogues.hash_book(self.settings)
        self.embeddings = EmbeddingShelf(self.hashes)
        self.loras = LoraShelf(self.embeddings)
        self.hypernetworks = HypernetShelf()
        self.controlnets = ControlNetShelf()
        self.texts = TextCache()
        self.tiny_vaes = TinyShelf(self.settings.folders.tiny_vaes[0])
        self.interrogators = InterrogationShelf(self.placement)
        self.residents = Residents(self.placement, self.settings.min_ram_reserved_gib, self._leaves)
        self._seen: object = None
        self._catalogue = Catalogue()

    @property
    def device(self) -> torch.device:
        return self.placement.device

    def catalogue(self) -> Catalogue:
        """What is installed now; scanned again when a folder has changed."""
        mark = tuple(_folder_marks(self.settings))
        if mark != self._seen:
            self._catalogue = catalogues.scan(self.settings)
            self.embeddings.list_files(self._catalogue.embeddings)
            self._seen = mark
        return self._catalogue

    def model(self, checkpoint: Checkpoint, storage: Storage = PLAIN) -> Model:
        return self.residents.model(checkpoint, storage)

    def coder(self, model: Model, vae: ModelFile | None, tiny: Tiny = NO_TINY) -> Coder:
        """The VAE to use with a model: its own, or the one in a file; TAESD for what ``tiny`` does.

        Raises BadRequest for a file that is for latents of other channels.
        """
        chosen = model.vae if vae is None else self.residents.vae(Path(vae.filename))
        if vae is not None and chosen.config.latent_channels != model.latent_channels:
            raise BadRequest(
                f"{vae.name} is for latents of {chosen.config.latent_channels} channels, the checkpoint's "
                f"have {model.latent_channels}: take a VAE of its family, or None",
                field="sd_vae",
            )
        layout = model.layout
        return Coder(
            chosen, layout.latent_scale, layout.latent_shift, bring=lambda: model.bring(chosen), tiny=tiny
        )

    def names(self, checkpoint: Checkpoint, vae: ModelFile | None) -> Names:
        """As the infotext says them. Hashes are computed once for a file, unless ``--no-hashing``."""
        return Names(
            model=Path(checkpoint.filename).stem,
            model_hash=self.short_hash(checkpoint.filename),
            vae=None if vae is None else Path(vae.filename).name,
            vae_hash=None if vae is None else self.short_hash(vae.filename),
        )

    def short_title(self, checkpoint: Checkpoint) -> str:
        """``name [hash]`` without folder and ending, as infotexts name a second checkpoint."""
        name = Path(checkpoint.filename).stem
        short = self.short_hash(checkpoint.filename)
        return f"{name} [{short}]" if short else name

    def short_hash(self, filename: str) -> str | None:
        found = self.hashes.sha256(Path(filename))
        return None if found is None else found[:SHORT_HASH_DIGITS]

    def clear(self) -> None:
        """Let go of everything that can be loaded again (after running out of memory)."""
        self.texts.clear()
        self.controlnets.clear()
        self.interrogators.clear()
        self.residents.clear()
        release_memory()

    def _leaves(self, model: Model) -> None:
        self.loras.forget(model)
        self.hypernetworks.forget(model)


def _folder_marks(settings: Settings) -> Iterator[tuple[str, int]]:
    """Every model folder and folder in it, with when an entry of it last changed."""
    folders = settings.folders
    kinds = (
        folders.checkpoints,
        folders.vaes,
        folders.loras,
        folders.embeddings,
        folders.hypernetworks,
        folders.controlnets,
        folders.esrgan,
        folders.dat,
        folders.hat,
        folders.scunet,
        folders.swinir,
    )
    for top in (folder for kind in kinds for folder in kind):
        for place, _, status in catalogues.folders_below(top):
            yield str(place), status.st_mtime_ns
