"""Measures a loaded model: perplexity, divergence from its original, time."""
