"""The check for nudity, for operators who must have one (`--enable-nsfw-censor`)."""

from sd_cloud.safety.censor import Censor, Region, blurred

__all__ = ["Censor", "Region", "blurred"]
