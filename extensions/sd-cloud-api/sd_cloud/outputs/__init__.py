"""Finished pictures to files: names, folders, infotext, local disk or OSS, links."""

from sd_cloud.outputs.save import Outputs

__all__ = ["Outputs"]
