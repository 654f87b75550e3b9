"""Makes a model smaller: fewer layers, channels, heads and experts, by what they contribute."""
