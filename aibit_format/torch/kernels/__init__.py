"""Computes products and decodes weights in torch, for CPUs and for CUDA."""
