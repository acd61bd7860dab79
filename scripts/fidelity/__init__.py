"""Requests to a real webui and to our engine, and what differs; see ``python -m scripts.fidelity``."""
