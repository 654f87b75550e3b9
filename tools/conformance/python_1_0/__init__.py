"""The reference reader of version 1.0, as it was: it shows that what is written later is read by it."""
