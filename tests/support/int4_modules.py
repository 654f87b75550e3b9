"""Write directories of one grouped int4 module."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file

from aibit_format.formats.huggingface.gptq import GPTQ
from aibit_format.formats.sources import open_source


def one_module(folder, said: dict, parts: dict[str, np.ndarray], config: dict | None = None) -> GPTQ:
    """A source of one quantized module ``m.q``, and a plain tensor beside it."""
    folder.mkdir(exist_ok=True)
    save_file({"m.b": np.ones(3, np.float32)} | {f"m.q.{part}": value for part, value in parts.items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps((config or {"dtype": "bfloat16"}) | {"quantization_config": said}))
    return open_source(folder)
