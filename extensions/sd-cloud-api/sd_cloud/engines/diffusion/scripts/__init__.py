"""The webui's built-in scripts: requests that make their pictures by several ordinary jobs."""
