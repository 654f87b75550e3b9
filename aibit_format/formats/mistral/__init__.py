"""Reads checkpoints as Mistral publishes them: its own names, settings and tokenizer."""
