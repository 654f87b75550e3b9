"""Fuzz a model in several files, opened by the first of them."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from tools import ROOT

from . import LONGEST, Mutate, bundle
from .mutation import OneOf
from .records import Mutator

_ROOT_DIGEST = slice(112, 128)


class Shards(bundle.Written):
    """Files by name, and the first of them in order is opened. A set that is accepted must also merge into one file."""

    def __init__(self) -> None:
        from tools.fixtures import file_builder

        super().__init__()
        from aibit_format.container import metadata
        from aibit_format.file import reader, rewrite, sharded_reader
        from aibit_format.schemes import BUILTIN, make

        for name in BUILTIN:
            make(name)
        self._builder, self._metadata = file_builder, metadata
        self._reader, self._rewrite, self._shards = reader, rewrite, sharded_reader
        self._seeds = self._make()

    def seeds(self) -> dict[str, bytes]:
        return {name: bundle.pack(files) for name, files in self._seeds.items()}

    def _files(self, data: bytes) -> dict[str, bytes]:
        files = super()._files(data)
        if not files:
            raise ValueError("none to open")
        return files

    def _come_to(self, files: Mapping[str, bytes]) -> str:
        from aibit_format.errors import AibitError

        first = os.path.join(self._inside, min(files))
        found = []
        for level in ("structure", "full"):
            try:
                opened = self._shards.open(first, level)
            except AibitError as error:
                found.append(self._verdicts.coded(error))
                continue
            with opened:
                found.append(self._verdicts.inside(opened))
                if level == "full" and isinstance(opened, self._shards.Sharded):
                    found.append(self._merged(first, opened))
        return ", ".join(found)

    def _merged(self, first: str, opened) -> str:
        """What merging comes to: a file of the same tensors in the same order, or a refusal."""
        from aibit_format.errors import AibitError

        output = os.path.join(self._folder.name, "merged.aibit")
        try:
            self._rewrite.merge(first, output, overwrite=True)
        except AibitError as error:
            return f"merged: {self._verdicts.coded(error)}"
        with self._reader.File(output, "full") as merged:
            same = merged.keys() == opened.keys() and list(merged.documents) == list(opened.documents)
            same = same and self._metadata.encode(merged.metadata) == self._metadata.encode(opened.metadata)
            for name in opened if same else ():
                ours, theirs = merged.planes(name), opened.planes(name)
                same = same and all(ours[role].tobytes() == plane.tobytes() for role, plane in theirs.items())
        if not same:
            raise ValueError("merged into something else")
        return "merged"

    def mutator(self, mutate: Mutate) -> OneOf:
        contents, others = Mutator(mutate), [*self._seeds.values()]

        def content(data: bytes, rng: random.Random) -> bytes:
            """Another file in the place of one, which the first then lists, more often than not."""
            files = bundle.unpack(data)
            name = rng.choice([*files])
            return bundle.pack(self._listed(files, name, contents(files[name], LONGEST, rng.getrandbits(32)), rng))

        def said_of_the_set(data: bytes, rng: random.Random) -> bytes:
            """Other values of ``shard.*`` in one of the files."""
            files = bundle.unpack(data)
            name = rng.choice([min(files), rng.choice([*files])])
            values = dict(self._reader.File(files[name]).metadata)
            key = rng.choice([key for key in values if key.startswith(("shard.", "model.parameters"))])
            values[key] = _another(values[key], rng)
            if rng.random() < 0.1:
                del values[key]
            body = self._metadata.encode(values)
            changed = self._builder.rebuilt(metadata=(len(values), body))(files[name])
            return bundle.pack(self._listed(files, name, changed, rng))

        def named_twice(data: bytes, rng: random.Random) -> bytes:
            """A tensor under the name of another, which may be in another file."""
            files = bundle.unpack(data)
            name, other = rng.choice([*files]), rng.choice([*files])
            tensors, others = (self._reader.File(files[n]).keys() for n in (name, other))
            change = self._builder.renamed("tensor", rng.randrange(len(tensors)), rng.choice(others).encode())
            return bundle.pack(self._listed(files, name, change(files[name]), rng))

        def another_file(data: bytes, rng: random.Random) -> bytes:
            """A file of this set, or of another one, in the place of one."""
            files, other = bundle.unpack(data), rng.choice([bundle.unpack(data), *others])
            return bundle.pack(self._listed(files, rng.choice([*files]), rng.choice([*other.values()]), rng))

        def names(data: bytes, rng: random.Random) -> bytes:
            """A file fewer, or one of another name."""
            files = bundle.unpack(data)
            name = rng.choice([*files])
            content = files.pop(name)
            if rng.random() < 0.7:
                old, new = str(rng.randrange(1, 5)), str(rng.randrange(6))
                files.setdefault(name.replace(f"0000{old}", f"0000{new}"), content)
            return bundle.pack(files)

        return OneOf(
            mutate,
            [content] * 3 + [said_of_the_set, said_of_the_set, said_of_the_set, named_twice, another_file, names],
        )

    def _listed(self, files: dict[str, bytes], name: str, content: bytes, rng: random.Random) -> dict[str, bytes]:
        """The files with another content of one; the first lists it by its root as it did the old one."""
        first = min(files)
        old, new = (data[_ROOT_DIGEST].hex().encode() for data in (files[name], content))
        files = {**files, name: content}
        if name != first and rng.random() < 0.9:
            files[first] = self._builder.reseal(files[first].replace(old, new))
        return files

    def _make(self) -> dict[str, dict[str, bytes]]:
        container = ROOT / "fixtures" / "container"
        made = {"fixture": {p.name: p.read_bytes() for p in sorted(container.glob("sharded-*.aibit"))}}
        for name in ("alias", "documents", "variants-cluster", "scheme-int8", "transposed"):
            bundle.write({}, self._inside)
            paths = self._rewrite.split(container / f"{name}.aibit", os.path.join(self._inside, "s.aibit"), 400)
            made[name] = {}
            for path in paths:
                with open(path, "rb") as file:
                    made[name][os.path.basename(path)] = file.read()
        # The order must be found, and the sizes are bounded by that of an input.
        return {name: files for name, files in made.items() if len(bundle.pack(files)) <= LONGEST and len(files) <= 16}


def _another(value, rng: random.Random):
    """A value like this one."""
    if isinstance(value, int):
        return rng.choice((0, 1, 2, 3, value + 1, value - 1, 99999, 100000, -1, 1 << 62))
    items = value.tolist() if hasattr(value, "tolist") else list(value)
    at = rng.randrange(len(items) + 1)
    way = rng.choice(("swap", "drop", "repeat", "change"))
    if way == "swap":
        rng.shuffle(items)
    elif way == "drop":
        del items[at : at + 1]
    elif way == "repeat":
        items[at:at] = items[at - 1 : at] or items[:1]
    elif at < len(items):
        items[at] = items[at][::-1] if isinstance(items[at], str) else _another(items[at], rng)
    return items
