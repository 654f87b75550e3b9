"""Converts a source into an ``.aibit`` file: recipe, binding, planning, encoding, error figures."""
