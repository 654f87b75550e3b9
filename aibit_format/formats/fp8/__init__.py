"""Reads and writes checkpoints whose weights are 8-bit floats with scales, of quant_method fp8 and others."""
