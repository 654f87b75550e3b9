"""Reads what ``torch.save`` wrote, without running any of it."""
