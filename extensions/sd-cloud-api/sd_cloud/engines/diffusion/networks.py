"""What prompts call for beside words: LoRAs and hypernetworks, put on a model before a pass."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sd_cloud.engines.base import Catalogue
from sd_cloud.engines.diffusion.hypernetworks import wanted_hypernetworks
from sd_cloud.engines.diffusion.lora import short_hash, wanted_loras
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.prompt_grammar import NetworkCall
from sd_cloud.engines.diffusion.workshop import Workshop


@dataclass
class Networks:
    """The networks of one job. ``marks`` and ``comments`` are written to."""

    workshop: Workshop
    catalogue: Catalogue
    options: Options
    marks: MutableMapping[str, Any]
    comments: list[str]
    _hashes: dict[str, str] = field(default_factory=dict)

    def put_on(self, model: Model, calls: Sequence[NetworkCall], *, second: bool) -> None:
        """Have exactly what is called for on a model. ``second``: for the hires pass.

        What there is no file for is told in the comments, as in the webui. Raises BadRequest for
        a multiplier that is no number, and CheckpointBroken for a broken file.
        """
        by_kind: dict[str, list[NetworkCall]] = {}
        for call in calls:
            by_kind.setdefault(call.kind, []).append(call)
        hypernets, missing = wanted_hypernetworks(by_kind.pop("hypernet", []), self.catalogue)
        if missing:
            self.comments.append(f"Hypernetwork not found: {', '.join(missing)}")
        loras = by_kind.pop("lora", []) + by_kind.pop("lyco", [])
        if by_kind:
            self.comments.append(f"Skipping unknown extra network: {', '.join(sorted(by_kind))}")
        wanted, missing = wanted_loras(loras, self.catalogue)
        if missing:
            self.comments.append(f"Lora not found: {', '.join(missing)}")
        self.workshop.hypernetworks.apply(model, hypernets)
        self.comments += self.workshop.loras.apply(model, wanted)
        if self.options.flag("lora_add_hashes_to_infotext"):
            if not second:
                self._hashes = {}
            for one in wanted:
                short = short_hash(one.file, self.workshop.hashes)
                if short:
                    self._hashes[one.name.replace(":", "").replace(",", "")] = short
            if self._hashes:
                self.marks["Lora hashes"] = ", ".join(
                    f"{key}: {value}" for key, value in self._hashes.items()
                )
