"""Reads and writes ``.aibit`` files, whole or in shards, and rewrites, compares and signs them."""
