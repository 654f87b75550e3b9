"""Benchmarks: how they are run, and what was found, is in NOTES.md."""
