"""Records what a model computes as a stored graph."""
