"""Reads and writes checkpoints whose weights are 8-bit floats with scales: a Hugging Face directory of quant_method fp8."""
