"""A field that takes a picture, and says so when it was given something else."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image, UnidentifiedImageError


def picture_field(**options: Any) -> gr.Image:
    """gradio's own, but for the message: a file that is no picture is no failure of the page's.

    No subclass: for one, gradio writes a file beside the module.
    """
    field = gr.Image(**options)
    read = field.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, OSError):
            raise gr.Error("the file is no picture that can be read", print_exception=False) from None

    field.preprocess = preprocess
    return field
