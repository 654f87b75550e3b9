"""Benchmarks: how they are run, and what was found, is in docs/benchmarks.md."""
