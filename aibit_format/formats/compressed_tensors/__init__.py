"""Reads and writes checkpoints of the compressed-tensors library, whose quant_method is compressed-tensors."""
