"""Stable Diffusion as a service: an extension of the webui, and a service of its own."""

__version__ = "0.1.0"
