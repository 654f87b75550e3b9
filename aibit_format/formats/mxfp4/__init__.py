"""Reads and writes gpt-oss checkpoints, whose fused experts are MXFP4."""
