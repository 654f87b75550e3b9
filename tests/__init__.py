"""Tests of the package, in folders that mirror its own; those of all of it are in ``whole/``."""
