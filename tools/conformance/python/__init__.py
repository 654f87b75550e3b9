"""The reference reader: it needs Python's standard library alone."""
