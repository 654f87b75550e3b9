"""Lists the architectures that both GGUF and transformers know. A new one is a block of rows in the file of its family.

Facts are those of llama.cpp's conversion scripts and ``src/models``, and of the models in transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..architecture import Architecture
from . import bert, deepseek, gemma, gemma4, gpt, gpt_oss, layer_norm, llama, minimax, phi, qwen, recurrent, t5

# Of several that one GGUF architecture stands for, the first that is meant.
ARCHITECTURES: tuple[Architecture, ...] = (
    *llama.ARCHITECTURES, *qwen.ARCHITECTURES, *gemma.ARCHITECTURES, *gemma4.ARCHITECTURES, *phi.ARCHITECTURES,
    *gpt_oss.ARCHITECTURES, *layer_norm.ARCHITECTURES, *gpt.ARCHITECTURES, *recurrent.ARCHITECTURES,
    *deepseek.ARCHITECTURES, *minimax.ARCHITECTURES, *t5.ARCHITECTURES, *bert.ARCHITECTURES,
)  # fmt: skip
KNOWN = tuple(dict.fromkeys(architecture.gguf for architecture in ARCHITECTURES))


def of_file(metadata: Mapping[str, Any], names: Collection[str]) -> Architecture | None:
    """Return the architecture of a GGUF file with this metadata and these names of tensors."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        return None
    return next((each for each in ARCHITECTURES if each.gguf == name and each.chosen(metadata, names)), None)


def of_config(config: Mapping[str, Any]) -> list[Architecture]:
    """Return the architectures that a model of this config may be; the one whose entries fit is it."""
    return [each for each in ARCHITECTURES if each.model_type == config.get("model_type")]
