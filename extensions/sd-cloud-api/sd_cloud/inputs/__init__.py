"""Links, paths and base64 into pictures, guarded."""

from sd_cloud.inputs.resolve import Inputs

__all__ = ["Inputs"]
