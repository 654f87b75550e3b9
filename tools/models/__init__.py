"""Tries every model type of the installed transformers: ``python -m tools.models``."""
