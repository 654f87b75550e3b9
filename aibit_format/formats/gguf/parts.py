"""Opens a GGUF file that may be the first of several parts, and reads them as one.

Parts are called ``NAME-00001-of-00003.gguf``; each says its number (``split.no``, from 0), how many there are
(``split.count``) and how many tensors all have together (``split.tensors.count``).
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from ...errors import SourceError
from .file import GGUFFile, GGUFTensor

_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_MOST = 99999  # parts that a name can count


class GGUFParts:
    """Read the GGUF file ``path`` and, if it is the first part of several, the others beside it.

    ``metadata`` is that of the first part; ``tensors`` are those of all, in order; ``files`` are the parts.

    Raises:
        SourceError: a part is damaged, missing or another's; the path is not the first part; a tensor is in two parts,
            or some are missing.
    """

    def __init__(self, path: str) -> None:
        first = GGUFFile(path)
        self.path, self.metadata = path, first.metadata
        count, number = self._number(first, "split.count", 1), self._number(first, "split.no", 0)
        found = _NAME.fullmatch(os.path.basename(path))
        if number or not 0 < count <= _MOST:
            first_name = f", {found[1]}-00001-of-{found[3]}.gguf" if found else ""
            raise SourceError(f"{path}: part {number + 1} of {count}: open the first part{first_name}")
        if count > 1 and (not found or int(found[2]) != 1 or int(found[3]) != count):
            raise SourceError(f"{path}: the first of {count} parts, and not called NAME-00001-of-{count:05}.gguf")
        self.files = [first]
        for i in range(1, count):
            name = os.path.join(os.path.dirname(path), f"{found[1]}-{i + 1:05}-of-{count:05}.gguf" if found else "")
            if not os.path.exists(name):
                raise SourceError(f"{path}: part {i + 1} of {count} is missing: {name}")
            self.files.append(self._part(name, i, count))
        self._owners: dict[str, GGUFFile] = {}
        for file in self.files:
            for tensor in file.tensors:
                if self._owners.setdefault(tensor.name, file) is not file:
                    raise SourceError(f"{file.path}: tensor {tensor.name!r} is in {self._owners[tensor.name].path} too")
        self.tensors = [tensor for file in self.files for tensor in file.tensors]
        stated = self._number(first, "split.tensors.count", len(self.tensors))
        if stated != len(self.tensors):
            raise SourceError(f"{path}: split.tensors.count is {stated}, the parts have {len(self.tensors)} tensors")

    def owner(self, tensor: GGUFTensor) -> GGUFFile:
        """Return the file that a tensor lies in."""
        return self._owners[tensor.name]

    def read(self, tensor: GGUFTensor) -> np.ndarray:
        """Return the tensor's bytes, u8 [nbytes], a view of the mapping."""
        return self.owner(tensor).read(tensor)

    def _part(self, name: str, number: int, count: int) -> GGUFFile:
        file = GGUFFile(name)
        found = self._number(file, "split.no", -1), self._number(file, "split.count", -1)
        if found != (number, count):
            raise SourceError(f"{name}: split.no and split.count are {found}, expected {(number, count)}")
        return file

    @staticmethod
    def _number(file: GGUFFile, key: str, otherwise: int) -> int:
        value: Any = file.metadata.get(key, otherwise)
        if type(value) is not int:
            raise SourceError(f"{file.path}: {key} is {str(value)[:60]}, a number is needed")
        return value
