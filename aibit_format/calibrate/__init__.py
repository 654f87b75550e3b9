"""Takes statistics of what goes into a model's layers, and computes from them what encoders and recipes need."""
