"""What the webui's callbacks do with us. Loaded by ``scripts/sd_cloud_api.py``, in the webui only.

Loading it loads next to nothing: the webui reads it before its page is built.
"""

from sd_cloud.inside_webui.callbacks import censor_scripts, loading, register

__all__ = ["censor_scripts", "loading", "register"]
