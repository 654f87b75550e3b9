"""Reads a ZIP archive that holds a model: a state dict of ``torch.save``, config, tokenizer and a description.

The proof of concept that came before this format wrote such files, with int8 weights as in bitsandbytes' state dict.
Nothing is ever unpacked to a disk: members are identified by the last part of their names, an uncompressed state dict
is mapped in place, and a compressed member is unpacked only if its size is within bounds.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ...container.documents import WANTED, parse_json
from ...container.layout import MAX_DOCUMENT
from ...container.metadata import Value
from ...errors import FormatError, SourceError
from ..files import MAX_ALL_DOCUMENTS, begins_with, pages
from ..huggingface.bitsandbytes import QuantizedStateDict, conv1d_rule, weight_dtype
from ..source import SourceFile, SourceTensor
from .pickled import ZIP_MAGIC, Bytes, PickledFile, member_start

_WEIGHTS = (".pt", ".pth", ".bin")
_DESCRIPTION = "metadata.json"
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 1  # flag bit
MAX_MEMBERS = 1 << 12
MAX_UNPACKED = 16 << 30  # bytes of a compressed state dict
MAX_RATIO = 100  # of unpacked to packed bytes; weights reach 2, text 20, a zip bomb 1000


class Archive:
    """Provide the tensors of the archive ``path``.

    Raises:
        SourceError: it is damaged, encrypted or a zip bomb; two members have the same name; or there is not exactly one
            state dict, or no config.
    """

    kind: ClassVar[str] = "archive"
    no_model = None
    architecture = None
    metadata: Mapping[str, Value] = {}

    def __init__(self, path: str) -> None:
        self.path = path
        self._map = pages(path)
        try:
            self._zip = zipfile.ZipFile(Bytes(self._map))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise SourceError(f"{path}: not a ZIP archive, or truncated: {error}") from error
        self._members = self._checked()
        weights = self._weights()
        limit = len(self._map) if weights.compress_type == zipfile.ZIP_STORED else MAX_UNPACKED
        stored = weights.compress_type == zipfile.ZIP_STORED
        data, start = self._bytes(weights, limit), member_start(self._map, weights, path) if stored else None
        self._shard = PickledFile(path, data, start, f"{path}: {weights.filename}")
        config = self._config()
        self._state_dict = QuantizedStateDict(
            path, self._shard.tensors, self._shard.read, weight_dtype(config, path), conv1d_rule(config)
        )

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is a file that begins like a ZIP archive."""
        return begins_with(path, ZIP_MAGIC)

    @property
    def tensors(self) -> dict[str, SourceTensor]:
        return self._state_dict.tensors

    @property
    def files(self) -> list[SourceFile]:
        return [SourceFile(os.path.basename(self.path), self.path, len(self._map))]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        wanted = {name: member for name, member in self._members.items() if WANTED.fullmatch(name)}
        if (total := sum(member.file_size for member in wanted.values())) > MAX_ALL_DOCUMENTS:
            raise SourceError(f"{self.path}: {total} bytes of documents, at most {MAX_ALL_DOCUMENTS} are read")
        found = {name: self._bytes(member, MAX_DOCUMENT).tobytes() for name, member in wanted.items()}
        if "config.json" not in found and (config := self._description().get("config")):
            found["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
        return dict(sorted(found.items()))

    def planes(self, name: str) -> dict[str, np.ndarray]:
        return self._state_dict.planes(name)

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        """Return the relevant members by the last part of their names, refusing encrypted and duplicate ones."""
        members = self._zip.infolist()
        packed = sum(member.compress_size for member in members)
        if len(members) > MAX_MEMBERS or packed > len(self._map):
            raise SourceError(
                f"{self.path}: {len(members)} members of {packed} bytes in a file of {len(self._map)}; "
                f"at most {MAX_MEMBERS}, and they may not overlap"
            )
        found: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            name = os.path.basename(member.filename.replace("\\", "/"))
            if not (WANTED.fullmatch(name) or name.endswith(_WEIGHTS) or name == _DESCRIPTION):
                continue
            if name in found:
                raise SourceError(f"{self.path}: two members {name!r}: {found[name].filename!r}, {member.filename!r}")
            if member.flag_bits & _ENCRYPTED or member.compress_type not in _METHODS:
                raise SourceError(
                    f"{self.path}: member {member.filename!r} has flags {member.flag_bits:#x} and compression "
                    f"{member.compress_type}; encrypted ones and methods but {sorted(_METHODS)} are not read"
                )
            found[name] = member
        return found

    def _weights(self) -> zipfile.ZipInfo:
        found = [name for name in self._members if name.endswith(_WEIGHTS)]
        if len(found) != 1:
            raise SourceError(
                f"{self.path}: {len(found)} state dicts ({', '.join(found[:3])}), expected one member *.pt, *.pth or "
                "*.bin; what torch.save wrote belongs into a directory with its config.json, as pytorch_model.bin"
            )
        return self._members[found[0]]

    def _bytes(self, member: zipfile.ZipInfo, limit: int) -> np.ndarray:
        """Return a member's bytes; a view of the file if it is not compressed."""
        size, packed = member.file_size, member.compress_size
        where = f"{self.path}: member {member.filename!r}"
        if size > limit or size > max(MAX_RATIO * packed, 1 << 10):
            raise SourceError(f"{where}: {size} bytes packed in {packed}; at most {limit}, and {MAX_RATIO} times")
        if member.compress_type == zipfile.ZIP_STORED:
            if size != packed:
                raise SourceError(f"{where}: stored, but {size} bytes are in {packed}")
            start = member_start(self._map, member, self.path)
            return self._map[start : start + size]
        try:
            return np.frombuffer(self._zip.read(member), np.uint8)
        except Exception as error:  # of zlib, zipfile and struct
            raise SourceError(f"{where}: damaged: {error}") from error

    def _config(self) -> dict[str, Any]:
        return self._json("config.json", self.documents["config.json"]) if "config.json" in self.documents else {}

    def _description(self) -> dict[str, Any]:
        if _DESCRIPTION not in self._members:
            return {}
        return self._json(_DESCRIPTION, self._bytes(self._members[_DESCRIPTION], MAX_DOCUMENT).tobytes())

    def _json(self, name: str, text: bytes) -> dict[str, Any]:
        try:
            value = parse_json(name, text)
        except FormatError as error:
            raise SourceError(f"{self.path}: {error}") from error
        if not isinstance(value, dict):
            raise SourceError(f"{self.path}: {name}: a JSON {type(value).__name__}, not an object")
        return value
