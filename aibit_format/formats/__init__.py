"""Reads and writes what other tools use: one folder for each foreign format, its way in beside its way out."""
