"""Reads and writes the formats of other tools: one folder per format, with its import beside its export."""
