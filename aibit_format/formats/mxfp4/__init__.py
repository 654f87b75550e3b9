"""Reads gpt-oss checkpoints, whose fused experts are MXFP4."""
