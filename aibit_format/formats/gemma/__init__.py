"""Reads and writes Gemma's checkpoints of integers from quantization-aware training."""
