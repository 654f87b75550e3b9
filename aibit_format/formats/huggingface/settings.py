"""Finds what a Hugging Face directory says of how its weights are quantized: in ``config.json``, or in a file beside.

Each method has a name, ``quant_method``. Some tools write none, or write their settings elsewhere:

    AutoGPTQ    quantize_config.json, without a method
    modelopt    hf_quant_config.json, with a producer
    MLX         the keys quantization and quantization_config of config.json, without a method
    AutoRound   quant_method auto-round, and whose layout it has in packing_format
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...container.documents import parse_json
from ...container.layout import MAX_DOCUMENT
from ...errors import FormatError, SourceError
from ..files import read_file
from .source import read_config, sub_configs

AUTOROUND = "auto-round"
_LIKE_GPTQ = ("auto_round", "auto_round:auto_gptq", "auto_round:gptq", "auto_round:exllamav2", "auto_round:tritonv2",
              "auto_gptq", "gptq")  # fmt: skip
CONFIG, GPTQ_BESIDE, MODELOPT_BESIDE = "config.json", "quantize_config.json", "hf_quant_config.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """Hold a quantization method, what is said of it, and the file that says it; ``None`` if nothing is quantized."""

    method: str | None
    said: Mapping[str, Any]
    file: str = CONFIG


def settings(path: str) -> Settings:
    """Read how the weights of a directory are quantized.

    Raises:
        SourceError: a file is not JSON, or not an object.
    """
    found = of_config(read_config(path))
    if found.method is not None:
        return found
    if said := _beside(path, MODELOPT_BESIDE):
        inner = said.get("quantization")
        return Settings("modelopt", inner if isinstance(inner, Mapping) else {}, MODELOPT_BESIDE)
    if said := _beside(path, GPTQ_BESIDE):
        return Settings("gptq", {"quant_method": "gptq", **said}, GPTQ_BESIDE)
    return found


def of_config(config: Mapping[str, Any]) -> Settings:
    """Return what a parsed ``config.json`` says, or that of a model inside it."""
    found = next((c["quantization_config"] for c in sub_configs(config) if c.get("quantization_config")), None)
    found = found if found is not None else config.get("quantization")
    if found is None:
        return Settings(None, {})
    return Settings(_method(found), found) if isinstance(found, Mapping) else Settings(repr(found)[:80], {})


def described(path: str) -> str:
    """Say in words how the weights of a directory are quantized.

    Raises:
        SourceError: as for ``settings``.
    """
    found = settings(path)
    if found.method is None:
        return "not quantized"
    format = found.said.get("format") if found.method == "compressed-tensors" else found.said.get("checkpoint_format")
    return f"quantized as {found.method}" + (f" ({format})" if isinstance(format, str) else "")


def _method(said: Mapping[str, Any]) -> str:
    method = said.get("quant_method")
    if said.get("load_in_8bit") or said.get("load_in_4bit"):  # written before the key quant_method existed
        return "bitsandbytes"
    if method is None and "group_size" in said and "bits" in said:
        return "mlx"
    method = str(method).removeprefix("intel/")
    return _packed_by_autoround(said) if method == AUTOROUND else method


def _packed_by_autoround(said: Mapping[str, Any]) -> str:
    """Return whose layout AutoRound has packed weights in; its own name if it is neither GPTQ's nor AWQ's."""
    layout = packing(said)
    if "awq" in layout:
        return "awq"
    return "gptq" if layout in _LIKE_GPTQ else AUTOROUND


def packing(said: Mapping[str, Any]) -> str:
    """Return the layout that AutoRound's settings name, without the name of a kernel."""
    return str(said.get("packing_format") or said.get("backend") or "auto_round").lower()


def _beside(path: str, name: str) -> Mapping[str, Any] | None:
    """Read a file of settings beside the config, if it is there."""
    full = os.path.join(path, name)
    if not os.path.isfile(full):
        return None
    try:
        found = parse_json(name, read_file(full, MAX_DOCUMENT))
    except FormatError as error:
        raise SourceError(f"{full}: {error}") from error
    if not isinstance(found, Mapping):
        raise SourceError(f"{full}: a JSON {type(found).__name__}, not an object")
    return found
