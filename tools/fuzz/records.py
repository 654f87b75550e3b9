"""Change an ``.aibit`` file in ways that its digests do not give away."""

from __future__ import annotations

import random

from . import LONGEST, Mutate


class Mutator:
    """Changes one thing in a file, and makes its digests right again.

    ``mutate(data, max_size)`` is libFuzzer's own mutation of bytes, which also draws on the constants that the code
    compares with.
    """

    def __init__(self, mutate: Mutate) -> None:
        from tools.fixtures import file_builder

        self._builder, self._mutate = file_builder, mutate
        self._ways = [
            self._field, self._field, self._field, self._metadata, self._metadata, self._name, self._plane,
            self._document, self._front_matter, self._row, self._bytes,
        ]  # fmt: skip

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        try:
            changed = data
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                changed = rng.choice(self._ways)(bytes(changed), rng)
            changed = self._sealed(changed, rng)
        except Exception:  # no file to take apart any more: what its records say leads nowhere
            changed = self._mutate(data, max_size)
        return bytes(changed[:max_size])

    def _sealed(self, data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.02:
            return data
        if rng.random() < 0.05:
            return self._builder.reseal(data)
        return self._builder.reseal(data, leaves=True)

    def _bytes(self, data: bytes, rng: random.Random) -> bytes:
        return self._mutate(data, LONGEST)

    def _front_matter(self, data: bytes, rng: random.Random) -> bytes:
        """Other bytes in one section, of the same length."""
        rows = self._builder.table(data, "section")
        row = rows[rng.randrange(len(rows))]
        return self._replaced(data, int(row["offset"]), int(row["length"]))

    def _field(self, data: bytes, rng: random.Random) -> bytes:
        """A value nobody sane would write, a near one, or another record's, in a field of a record."""
        kind = rng.choice(("header", "section", "scheme", "scheme", "document", "tensor", "tensor", "plane"))
        spots = self._builder.spots.__wrapped__(data, kind)
        at, width = rng.choice(spots)
        old, other = (int.from_bytes(data[i : i + width], "little") for i in (at, rng.choice(spots)[0]))
        evil = self._builder.EVIL
        value = rng.choice((*evil, old + 1, old - 1, old * 2, old + 64, old ^ 1 << rng.randrange(8), other,
                            rng.randrange(20)))  # fmt: skip
        return data[:at] + (value % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]

    def _row(self, data: bytes, rng: random.Random) -> bytes:
        """Another shape, dtype or scheme of a tensor, and planes of the lengths that follow, as far as any do."""
        from aibit_format.dtypes import DTYPES
        from aibit_format.file.reader import File

        file = File(data)
        name = rng.choice(file.keys())
        info, table = file.info(name), file.tables.tensor_table.copy()
        planes, at = file.tables.plane_table.copy(), file.tables.index[name]
        shape = [rng.choice((n, n, n + 1, n * 2, n // 2, 1, 0, rng.randrange(70))) for n in info.shape]
        dtype = rng.choice((info.dtype, info.dtype, *DTYPES))
        table["shape"][at, : len(shape)], table["dtype"][at] = shape, DTYPES[dtype].code
        first = int(table["first_plane"][at])
        for i, spec in enumerate(info.scheme.planes(tuple(shape), dtype) if not info.alias_of else ()):
            planes["length"][first + i], planes["dtype"][first + i] = spec.nbytes, DTYPES[spec.dtype].code
            if spec.nbytes > LONGEST:
                raise ValueError("longer than an input may be")
        return self._builder.rebuilt(
            tensors=(len(table), table.tobytes()), planes=(len(planes), planes.tobytes()), metadata=(0, b"")
        )(data)

    def _metadata(self, data: bytes, rng: random.Random) -> bytes:
        """Another metadata section: bytes of any length, or one entry fewer, twice, or made anew."""
        row = self._builder.section(data, "metadata")
        body, count = self._builder.body(data, "metadata"), int(row["count"])
        if rng.random() < 0.5:
            content = self._mutate(body or b"\0", 1 << 12)
            return self._builder.rebuilt(metadata=(max(0, count + rng.choice((0, 0, 0, 1, -1))), content))(data)
        key = rng.choice((b"a.b", b"model.type", b"model.parameters", b"source.kind", b"quantization.error.tensor"))
        kind, is_array = rng.choice((1, 2, 3, 4, 5)), rng.choice((0, 1))
        entry = self._builder.entry(key, kind, self._mutate(rng.randbytes(8), 64), is_array, rng.choice((0, 1, 1, 2)))
        place = rng.choice((0, len(body)))
        return self._builder.rebuilt(metadata=(count + 1, body[:place] + entry + body[place:]))(data)

    def _name(self, data: bytes, rng: random.Random) -> bytes:
        record = rng.choice(("scheme", "document", "tensor"))
        rows, pool = self._builder.table(data, record), self._builder.body(data, "strings")
        i = rng.randrange(len(rows))
        old = pool[int(rows["name_offset"][i]) :][: int(rows["name_length"][i])]
        return self._builder.renamed(record, i, self._mutate(old, 300))(data)

    def _plane(self, data: bytes, rng: random.Random) -> bytes:
        """Other contents of a plane: of the whole of it, or of what may be scales."""
        row = rng.choice(self._builder.table(data, "plane"))
        return self._replaced(data, int(row["offset"]), int(row["length"]))

    def _document(self, data: bytes, rng: random.Random) -> bytes:
        """Other contents of a document, of any length."""
        from aibit_format.container.layout import align

        rows = self._builder.table(data, "document").copy()
        i = rng.randrange(len(rows))
        start, length = int(rows["offset"][i]), int(rows["length"][i])
        content = self._mutate(data[start : start + length] or b"{}", 1 << 12)
        rows["length"][i] = len(content)
        data = self._builder.rebuilt(documents=(len(rows), rows.tobytes()))(data)
        start = int(self._builder.table(data, "document")["offset"][i])
        room = align(len(content), 64)
        return data[:start] + content.ljust(room, b"\0")[: max(0, len(data) - start)] + data[start + room :]

    def _replaced(self, data: bytes, start: int, length: int) -> bytes:
        old = data[start : start + length]  # which may be less than the records claim
        content = self._mutate(old or b"\0", max(len(old), 1))[: len(old)]
        return data[:start] + content.ljust(len(old), b"\0") + data[start + len(old) :]
