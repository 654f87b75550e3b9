"""Defines the modules that hold quantized weights."""
