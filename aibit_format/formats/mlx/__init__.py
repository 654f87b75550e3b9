"""Reads and writes checkpoints of MLX, and those that transformers quantizes for Metal in the same layout."""
