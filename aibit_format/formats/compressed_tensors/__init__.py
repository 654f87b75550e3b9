"""Reads and writes checkpoints of the compressed-tensors library: a Hugging Face directory of quant_method compressed-tensors."""
