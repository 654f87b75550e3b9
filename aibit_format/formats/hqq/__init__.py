"""Reads checkpoints of HQQ, half-quadratic quantization."""
