"""Fuzz signatures, in the file and beside it, checked with a key. A forgery is a finding."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

from tools import ROOT

from . import LONGEST, Mutate, bundle
from .mutation import OneOf
from .records import Mutator

_KEY = ROOT / "fixtures" / "keys" / "test-only"
_STRANGER = bytes(range(32))  # the private half of a key that nobody asks for
_FILE, _BESIDE = "m.aibit", "m.aibit.sig"
_KINDS = (8, 11)  # sections of signatures
_WHOLE, _FRONT = 1, 2  # algorithms: over the whole file, over the front matter


class Signatures(bundle.Written):
    """A file, and perhaps signatures beside it.

    What the key's signature is found on must be, but for signatures and root, one of the files that it was made for.
    That is compared byte by byte, by the tables alone and not by what the package says is unsigned.
    """

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from tools.fixtures import file_builder

        super().__init__()
        from aibit_format.container import signatures
        from aibit_format.file import reader, signing

        self._builder = file_builder
        self._reader, self._signatures, self._signing = reader, signatures, signing
        self._stranger = os.path.join(self._folder.name, "stranger.pem")
        self._stranger_key = Ed25519PrivateKey.from_private_bytes(_STRANGER)
        serialization, _ = signatures.primitives()
        with open(self._stranger, "wb") as file:
            file.write(self._stranger_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ))  # fmt: skip
        self._seeds, self._signed = self._make()

    def seeds(self) -> dict[str, bytes]:
        return {name: bundle.pack(files) for name, files in self._seeds.items()}

    def _files(self, data: bytes) -> dict[str, bytes]:
        files = super()._files(data)
        if _FILE not in files:
            raise ValueError(f"no {_FILE}")
        return files

    def _come_to(self, files: Mapping[str, bytes]) -> str:
        path, content = os.path.join(self._inside, _FILE), files[_FILE]
        found = self._checked(path, content)
        if _BESIDE not in files and (held := self._checked(content, content)) != found:
            raise ValueError(f"mapped: {found}; from bytes: {held}")
        if _BESIDE in files:
            found += f", beside it {self._checked(path, content, os.path.join(self._inside, _BESIDE))}"
        self._verdicts.check_comes_out_the_same(content)
        return f"{found}; signed again: {self._signed_again(path)}"

    def mutator(self, mutate: Mutate) -> OneOf:
        contents, others = Mutator(mutate), [*self._seeds.values()]

        def content(data: bytes, rng: random.Random) -> bytes:
            """Another file under the same signatures."""
            files = bundle.unpack(data)
            return bundle.pack({**files, _FILE: contents(files[_FILE], LONGEST, rng.getrandbits(32))})

        def records(data: bytes, rng: random.Random) -> bytes:
            """Other bytes in the signatures, in the file or beside it."""
            files = bundle.unpack(data)
            place = rng.choice([*files])
            old = files[place] if place == _BESIDE else self._section(files[_FILE])
            new = bytearray(old)
            at, width = rng.choice(_spots(len(old), 16 if place == _BESIDE else 0))
            new[at : at + width] = mutate(bytes(new[at : at + width]), width)[:width].ljust(width, b"\0")
            return bundle.pack(self._replaced(files, place, bytes(new)))

        def beside(data: bytes, rng: random.Random) -> bytes:
            """Other signatures beside the file: none, of any bytes, or those of another one."""
            files = bundle.unpack(data)
            old = files.pop(_BESIDE, b"")
            new = rng.choice((None, mutate(old or b"\0", 1000), rng.choice(others).get(_BESIDE, old)))
            return bundle.pack(files if new is None else {**files, _BESIDE: bytes(new)})

        def transplanted(data: bytes, rng: random.Random) -> bytes:
            """The signatures of another file in this one."""
            files, other = bundle.unpack(data), rng.choice(others)
            return bundle.pack(self._replaced(files, _FILE, self._section(other[_FILE])))

        def by_a_stranger(data: bytes, rng: random.Random) -> bytes:
            """The stranger's signature of this very file, alone or under the key's name."""
            files = bundle.unpack(data)
            place, name = rng.choice([*files]), rng.choice((None, None, self._key))
            made = self._by_stranger(files[_FILE], name)
            body = self._signatures.detached([made]) if place == _BESIDE else self._signatures.section([made])
            return bundle.pack(self._replaced(files, place, body))

        return OneOf(mutate, [content, content, content, records, records, beside, transplanted, by_a_stranger])

    def _make(self) -> tuple[dict[str, dict[str, bytes]], set[bytes]]:
        """Seeds, and what the key has signed."""
        made: dict[str, dict[str, bytes]] = {}
        container = ROOT / "fixtures" / "container"
        self._key = next(iter(self._signatures.public_keys(f"{_KEY}.pub")))
        for name in ("hello", "documents", "metadata", "empty", "extra-section", "sharded-00002-of-00003"):
            plain = (container / f"{name}.aibit").read_bytes()
            made[f"{name}-beside"] = {_FILE: plain, _BESIDE: self._detached(plain, f"{_KEY}.pem")}
            made[f"{name}-by-a-stranger"] = {_FILE: plain, _BESIDE: self._detached(plain, self._stranger)}
            if not name.startswith("sharded"):
                made[f"{name}-inside"] = {_FILE: self._embedded(plain, f"{_KEY}.pem")}
                both = self._embedded(plain, f"{_KEY}.pem", self._stranger)
                made[f"{name}-both"] = {_FILE: both, _BESIDE: self._detached(both, f"{_KEY}.pem", self._stranger)}
        for name in ("signed", "sections", "signed-front"):
            made[f"fixture-{name}"] = {_FILE: (container / f"{name}.aibit").read_bytes()}
        signed = {self._content(files[_FILE]) for name, files in made.items() if not name.endswith("stranger")}
        return made, signed

    def _detached(self, data: bytes, *keys: str) -> bytes:
        bundle.write({_FILE: data}, self._inside)
        self._signing.sign_detached(os.path.join(self._inside, _FILE), keys)
        with open(os.path.join(self._inside, _BESIDE), "rb") as file:
            return file.read()

    def _embedded(self, data: bytes, *keys: str) -> bytes:
        bundle.write({_FILE: data}, self._inside)
        path, output = os.path.join(self._inside, _FILE), os.path.join(self._inside, "signed.aibit")
        self._signing.sign(path, keys, output, overwrite=True)
        with open(output, "rb") as file:
            return file.read()

    def _checked(self, source: str | bytes, content: bytes, detached: str | None = None) -> str:
        """The key that is found to have signed, or the code of the refusal; ValueError for a forgery."""
        from aibit_format.errors import AibitError

        try:
            with self._reader.File(
                source, "structure" if detached else "full", None if detached else f"{_KEY}.pub"
            ) as f:
                key = f.check_signature(f"{_KEY}.pub", detached) if detached else f.signed_by
                f.verify()  # a signature of the front matter says nothing of what is not read
        except AibitError as error:
            return self._verdicts.coded(error)
        if self._content(content) not in self._signed:
            raise ValueError(f"forged: {key} is found to have signed what it has not")
        return str(key)

    def _signed_again(self, path: str) -> str:
        """What signing a file comes to: one that has been signed must verify."""
        from aibit_format.errors import AibitError

        output = os.path.join(self._folder.name, "again.aibit")
        try:
            self._signing.sign(path, self._stranger, output, overwrite=True)
        except AibitError as error:
            return self._verdicts.coded(error)
        with self._reader.File(output, "full") as file:
            if not all(self._signatures.verifies(found, _digest(file, found.algorithm)) for found in file.signatures):
                raise ValueError("signed, and does not verify")
        return "verifies"

    def _by_stranger(self, data: bytes, name: bytes | None):
        """The stranger's signature over a file, said to be by ``name``."""
        key = name or self._stranger_key.public_key().public_bytes_raw()
        with self._reader.File(data) as file:
            algorithm = _WHOLE if file.tables.strong_leaves is None else _FRONT
            message = self._signatures.message(key, _digest(file, algorithm))
        return self._signatures.Signature(key, self._stranger_key.sign(message), algorithm)

    def _content(self, data: bytes) -> bytes:
        """A file without its root and what its signatures are."""
        out = bytearray(data)
        out[self._builder.HEAD - 16 : self._builder.HEAD] = bytes(16)
        for row in self._builder.table(data, "section"):
            if row["kind"] in _KINDS:
                start, length = int(row["offset"]), int(row["length"])
                out[start : start + length] = bytes(length)
        return bytes(out)

    def _section(self, data: bytes) -> bytes:
        row = next(row for row in self._builder.table(data, "section") if row["kind"] in _KINDS)
        return data[int(row["offset"]) :][: int(row["length"])]

    def _replaced(self, files: dict[str, bytes], place: str, body: bytes) -> dict[str, bytes]:
        """Other signatures in the file, or beside it."""
        if place == _BESIDE:
            return {**files, _BESIDE: body}
        rebuilt = self._builder.rebuilt
        change = rebuilt(lambda rows: [(k, f, n, body if k in _KINDS else content) for k, f, n, content in rows])
        return {**files, _FILE: change(files[_FILE])}


def _digest(file: Any, algorithm: int) -> bytes:
    """What signatures of this algorithm cover."""
    return file.content_digest() if algorithm == _WHOLE else file.tables.front_digest()


def _spots(size: int, first: int) -> list[tuple[int, int]]:
    """(offset, width) of the fields of signatures, of which the first begins at ``first``, and of what is before."""
    fields = ((0, 2), (2, 6), (8, 32), (40, 64))
    records = [(at + start, width) for at in range(first, size - 103, 104) for start, width in fields]
    return [*records, (0, first)] if first else records
