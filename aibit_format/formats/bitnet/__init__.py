"""Reads and writes checkpoints of BitNet, whose weights are -1, 0 and 1."""
