"""Draw weights."""

from __future__ import annotations

import torch

from aibit_format import schemes

INT8 = schemes.make("int8")
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def weights(kind: str, dtype: str, shape=(300, 192)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator)
    x = {"tiny": x * 1e-6, "huge": x * 1e4, "subnormal": x * 1e-7, "ties": (x * 4).round() / 4}.get(kind, x)
    if kind == "zero-row":
        x[::7] = 0
    return x.clamp(-6e4, 6e4).to(DTYPES[dtype])
