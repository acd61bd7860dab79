"""Options of the webui that would change a picture and that this engine does not have."""

from __future__ import annotations

from typing import Any

from sd_cloud.errors import NotImplementedHere
from sd_cloud.job import Job

DEFAULTS: dict[str, Any] = {
    "sd_unet": "Automatic",
}
"""Each with the one value that is served: the webui's default."""

ALSO_PLAIN = {"sd_unet": ("Automatic", "None", None)}


def check_unsupported(job: Job) -> list[str]:
    """Refuse what a request sets; only say so where the host's own options have it.

    Raises NotImplementedHere naming the option. Returns a sentence for each option that has no
    effect, for ``info``.
    """
    own = job.payload.get("override_settings") or {}
    sentences = []
    for name, default in DEFAULTS.items():
        plain = (*ALSO_PLAIN.get(name, ()), default, None)
        if own.get(name) not in plain:
            raise NotImplementedHere(
                f"this engine does not have it; only {default!r} is served", field=f"override_settings.{name}"
            )
        if name not in own and job.options.get(name) not in plain:
            sentences.append(f"The option {name} has no effect: this engine does not have it")
    return sentences
