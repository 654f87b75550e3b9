"""Compare metadata."""

import numpy as np


def same(found, value):
    """Metadata as it comes back: lists of numbers are arrays, lists of one type stay lists."""
    if isinstance(value, np.ndarray) or (isinstance(value, list) and type((value or [0])[0]) in (int, float)):
        wanted = np.asarray(value, "<f8" if len(value) and isinstance(value[0], float) else "<i8")
        return isinstance(found, np.ndarray) and found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()
    if isinstance(value, float):
        return isinstance(found, float) and np.float64(found).tobytes() == np.float64(value).tobytes()
    return type(found) is type(value) and found == value
