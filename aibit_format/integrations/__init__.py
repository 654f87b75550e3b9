"""Puts files where other libraries look for models: a module a library."""
