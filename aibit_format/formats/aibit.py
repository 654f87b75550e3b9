"""Reads an ``.aibit`` file as a source, to convert it again with another recipe."""

from __future__ import annotations

import os
from functools import cached_property
from typing import ClassVar

import numpy as np

from ..container import pruning, vocabulary
from ..container.layout import SIGNATURE
from ..container.metadata import Value
from ..dtypes import DTYPES
from ..file import sharded_reader
from ..schemes.plain import Plain
from .files import begins_with
from .huggingface.origin import LEFT_OUT, PARTS, SAID
from .source import SourceFile, SourceTensor

_ABOUT = ("model.architecture", "model.type", "model.dtype")
# How quantized weights are used in computation, and were stored, which stays true for those that are kept.
TRANSFORMED = "transform.applied"  # what was done to the model, which stays true of its weights
CARRIED = (
    "quantization.compute_dtype", "quantization.outlier_threshold", SAID, PARTS, LEFT_OUT, TRANSFORMED, vocabulary.SIZE,
    vocabulary.SOURCE, *pruning.KEYS, "source.repository", "source.revision",
)  # fmt: skip


class Aibit:
    """Provide the tensors of the file ``path``, or of the shards of which it is the first, quantized ones unchanged.

    An alias has its target's planes.

    Raises:
        FormatError: the file is not valid; also raised when a plane is read whose bytes do not match their digests.
    """

    kind: ClassVar[str] = "aibit"

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = sharded_reader.whole(sharded_reader.open(path, verify="touched"))
        metadata = self._file.metadata
        self.architecture = str(metadata["model.architecture"]) if "model.architecture" in metadata else None
        self.metadata = {key: metadata[key] for key in metadata if key in CARRIED}
        why = str(metadata.get("model.missing", "the file holds tensors, but no model.architecture"))
        self.no_model = None if self.architecture else why

    @property
    def about(self) -> dict[str, Value]:
        """Return what the file's metadata say about the model."""
        return {key: self._file.metadata[key] for key in _ABOUT if key in self._file.metadata}

    @property
    def signed(self) -> bool:
        """Tell whether the file carries signatures."""
        return any(part.tables.signatures for part in self._file.parts)

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is a file that begins with the signature of ``.aibit`` files."""
        return begins_with(path, SIGNATURE)

    @cached_property
    def tensors(self) -> dict[str, SourceTensor]:
        found = {}
        for key in self._file:
            info, name = self._file.info(key), os.path.basename(str(self._file.part(key).path))
            # Packed values are handed on as they are, or decoded, like quantized ones.
            plain = isinstance(info.scheme, Plain) and not DTYPES[info.dtype].is_packed
            scheme = None if plain else info.scheme
            found[key] = SourceTensor(key, info.shape, info.dtype, name, scheme, info.transposed, info.alias_of)
        return found

    @property
    def files(self) -> list[SourceFile]:
        paths = [(str(part.path), part.size) for part in self._file.parts]
        return [SourceFile(os.path.basename(path), path, size) for path, size in paths]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        return {name: bytes(text) for name, text in self._file.documents.items()}

    def planes(self, name: str) -> dict[str, np.ndarray]:
        planes = self._file.planes(name)
        self._file.check_values(self._file.info(name), planes)
        return planes
