"""Defines the bytes of a file: records, checksums, signatures, placement, rules. No file is opened here."""
