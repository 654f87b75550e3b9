"""Runs stored graphs over mapped pages, without the model's Python."""
