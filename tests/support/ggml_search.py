"""What was found for GGML's blocks, decoded by the definition of the search."""

from __future__ import annotations

import numpy as np


def decoded(search, found):
    """Values as the definition of the types has them: d * factor * code - dmin * offset, f32 [n, block]."""
    scale, least = (found.scales[:, i, None] * found.factors[:, i].astype(np.float32) for i in (0, 1))
    codes = found.codes.astype(int)
    codes = codes + search.codes[0] if search.book is None else np.array(search.book)[codes]
    grouped = codes.reshape(len(codes), search.groups, search.size).astype(np.float32)
    return (scale[:, :, None] * grouped - least[:, :, None]).reshape(len(codes), search.block)
