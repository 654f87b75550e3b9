"""From a path to a model, or to tensors alone, every way that the rows compare; and what comes first after it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STATE_DICT = "weights.pt"
_TOKENS = 8  # in the first forward
_PAGE = 4096
_open: list[Any] = []  # files whose tensors' memory goes when they are closed


def installed(way: str) -> bool:
    """Whether there is the library that a way is named after; the other ways need none but the extras."""
    return way != "fastsafetensors" or find_spec(way) is not None


def loader(way: str) -> Callable[[str], Any]:
    """A function from a path to a model, with everything imported that any of the ways imports.

    All ways import the same, so that memory before the load is the same too.
    """
    import bitsandbytes  # noqa: F401
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.models.llama import modeling_llama
    from transformers.utils import logging

    from aibit_format.file.reader import File
    from aibit_format.interop import to_torch
    from aibit_format.torch.load.model import load_model

    logging.disable_progress_bar()

    def pretrained(path: str | None, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
        with contextlib.redirect_stdout(sys.stderr):
            return kind.from_pretrained(path, local_files_only=True, **options).eval()

    def quantized(path: str, **options: Any) -> Any:
        config = BitsAndBytesConfig(**options)
        return pretrained(path, dtype=torch.float16, device_map={"": "cpu"}, quantization_config=config)

    def state_dict(path: str) -> Any:
        """As the proof of concept loaded: the state dict into memory, from there into an 8-bit model."""
        state = torch.load(Path(path) / STATE_DICT, map_location="cpu", weights_only=True)
        kind = modeling_llama.LlamaForCausalLM  # without a path, transformers cannot look for it
        return pretrained(None, kind, config=AutoConfig.from_pretrained(path), state_dict=state, device_map={"": "cpu"})

    def planes(path: str) -> list[torch.Tensor]:
        file = File(path)
        infos = [file.info(name) for name in file]
        return [
            to_torch(array, plane.dtype)
            for info in infos
            if info.alias_of is None
            for plane, array in zip(info.planes, file.planes(info.name).values(), strict=True)
        ]

    return {
        "aibit": load_model,
        "weight only": lambda path: load_model(path, weight_only=True),
        "weight only, bf16": lambda path: load_model(path, weight_only=True, dtype="bfloat16"),
        "saved": lambda path: pretrained(path, device_map={"": "cpu"}),
        "quantize": lambda path: quantized(path, load_in_8bit=True),
        "quantize to nf4": lambda path: quantized(path, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "fp16": lambda path: pretrained(path, dtype=torch.float16),
        "bf16": lambda path: pretrained(path, dtype=torch.bfloat16),
        "state dict": state_dict,
        "gguf": lambda path: pretrained(str(Path(path).parent), gguf_file=Path(path).name),
        "planes": planes,
        "safetensors": lambda path: [
            tensor for file in sorted(Path(path).glob("*.safetensors")) for tensor in load_file(file).values()
        ],
        "fastsafetensors": _fast,
    }[way]


def _fast(path: str) -> list[Any]:
    from fastsafetensors import fastsafe_open

    found = []
    for file in sorted(Path(path).glob("*.safetensors")):
        opened = fastsafe_open([str(file)], device="cpu", nogds=True)
        _open.append(opened)
        found += [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118 - no mapping
    return found


def use(loaded: Any) -> None:
    """The first forward of a model; of tensors alone, a look at every page, which is what a forward would touch."""
    import torch

    with torch.inference_mode():
        if not isinstance(loaded, list):
            loaded(torch.arange(1, _TOKENS + 1)[None])
            return
        for tensor in loaded:
            tensor.contiguous().reshape(-1).view(torch.uint8)[::_PAGE].sum()
