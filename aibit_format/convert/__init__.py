"""Converts a source to an ``.aibit`` file: reads the recipe, binds and plans tensors, encodes, measures errors."""
