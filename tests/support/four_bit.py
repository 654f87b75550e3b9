"""Convert to four bits, and load as transformers and bitsandbytes do."""

from __future__ import annotations

import torch

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
