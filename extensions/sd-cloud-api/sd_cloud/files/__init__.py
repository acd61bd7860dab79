"""The FileBrowser: pictures and models of the data dir, each caller in their own folders."""

from sd_cloud.files.browser import Entry, FileBrowser

__all__ = ["Entry", "FileBrowser"]
