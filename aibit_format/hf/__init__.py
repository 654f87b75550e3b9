"""Tells what a transformers config and an empty model say of tensors."""
