"""Reads Llama checkpoints as Meta publishes them, and has what is the same in other makers' own checkpoints."""
