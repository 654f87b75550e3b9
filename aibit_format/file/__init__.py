"""Reads and writes ``.aibit`` files, whole or in shards, and makes files from files."""
