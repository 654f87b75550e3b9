"""Keeps in a file's metadata how a checkpoint stored its quantized weights, so that an export can store them so again.

    source.quantization   what the checkpoint said of its quantization, as JSON
    source.parts          ``ENDING DTYPE RANK`` for the parts of weights: ``.weight_scale f32 2``, without repetitions

Schemes hold the values of weights, and not how their parts were named, or whether a scale alone had a dimension. No
reader of a file depends on these keys: they are hints, and what they say is compared with the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...container.documents import FORBIDDEN_KEYS, parse_json
from ...container.metadata import Value
from ...errors import FormatError
from ..source import SourceTensor
from .settings import Settings, of_config

SAID, PARTS, LEFT_OUT = "source.quantization", "source.parts", "source.left_out"
_MOST = 1 << 20  # bytes of settings that are kept; lists of modules take a few thousand
_PART = re.compile(r"(\S*) (\w+) (\d)")


@dataclass(frozen=True, slots=True)
class Origin:
    """Hold what is known of the checkpoint that a file was made from; nothing, if that was not quantized.

    ``parts`` maps the ending of a part's name to the dtypes and ranks that such parts had. ``left_out`` says that parts
    which say nothing of weights, such as scales of activations, are not in the file.
    """

    method: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, list[tuple[str, int]]] = field(default_factory=dict)
    left_out: bool = False

    def part(self, ending: str, dtypes: Collection[str]) -> tuple[str, int] | None:
        """Return the dtype and the rank of the parts with this ending that had one of the dtypes."""
        return next((found for found in self.parts.get(ending, ()) if found[0] in dtypes), None)


def left_out(counts: Mapping[str, int]) -> dict[str, Value]:
    """Return the metadata that say how many tensors of each name were left out."""
    return {LEFT_OUT: [f"{count} tensors {name}" for name, count in sorted(counts.items())]}


def record(found: Settings, parts: Iterable[tuple[str, Iterable[SourceTensor]]]) -> dict[str, Value]:
    """Return the metadata for a checkpoint.

    Args:
        found: what it says of its quantization.
        parts: the names of its quantized weights, and their parts.
    """
    said = json.dumps({"quant_method": found.method, **found.said})  # the order of expressions means something
    kinds = dict.fromkeys(
        f"{part.name.removeprefix(name.removesuffix('.weight'))} {part.dtype} {len(part.shape)}"
        for name, each in parts
        for part in each
    )
    return {SAID: said, PARTS: sorted(kinds)} if len(said) <= _MOST else {}


def origin_of(metadata: Mapping[str, Value]) -> Origin:
    """Return what a file's metadata say of the checkpoint it was made from; what has no meaning is left out."""
    text, lines = metadata.get(SAID), metadata.get(PARTS)
    try:
        said = parse_json(SAID, text.encode(), constants=True) if isinstance(text, str) else None
    except FormatError:
        said = None
    if not isinstance(said, dict):
        return Origin()
    parts: dict[str, list[tuple[str, int]]] = {}
    for line in lines if isinstance(lines, list) else ():
        if found := _PART.fullmatch(str(line)):
            parts.setdefault(found[1], []).append((found[2], int(found[3])))
    said = _without_code(said)
    method = of_config({"quantization_config": said}).method
    return Origin(method, said, parts, LEFT_OUT in metadata)


def _without_code(value: Any) -> Any:
    """Return a JSON value without keys that make a library fetch or run something."""
    if isinstance(value, list):
        return [_without_code(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_code(each) for key, each in value.items() if key not in FORBIDDEN_KEYS}
    return value
