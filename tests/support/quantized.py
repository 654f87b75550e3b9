"""Quantize weights, and decode them."""

from __future__ import annotations

import torch

from tests.support import architectures


def decoded(name, folder, file):
    """The plain model with the values that the file's planes stand for."""
    plain = architectures.load(name, folder)
    with torch.no_grad():
        for key in file:
            info = file.info(key)
            if info.scheme.lossy:
                values = file.dequantize(key)
                plain.get_parameter(key).copy_(torch.from_numpy(values.T if info.transposed else values))
    return plain
