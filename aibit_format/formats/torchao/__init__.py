"""Reads checkpoints of torchao's tensors in safetensors."""
