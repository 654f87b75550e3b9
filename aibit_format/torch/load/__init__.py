"""Builds transformers models whose parameters are views of a mapped file."""
