"""Reads and writes checkpoints of NVIDIA's Model Optimizer: 4-bit and 8-bit floats with scales."""
