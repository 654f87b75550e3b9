"""Reads files that ``torch.save`` wrote, without running any code in them."""
