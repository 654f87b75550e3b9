"""Reads and writes GGUF, the files of llama.cpp and Ollama."""
