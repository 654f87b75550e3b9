"""Reads what a transformers config and an empty model say about tensors."""
