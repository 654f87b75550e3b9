"""Examples that are too long for the manual, and are run to know that they work."""
