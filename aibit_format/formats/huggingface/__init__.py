"""Reads and writes directories that transformers saves, plain or quantized."""
