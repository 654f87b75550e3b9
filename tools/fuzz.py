"""Fuzz the reader: open, validate, decode and verify, over a mapped file and over bytes.

    python tools/fuzz.py --seconds 60                 a minute, from the fixtures
    python tools/fuzz.py --seconds 3600 --corpus DIR  an hour; inputs that reach something new are kept in DIR
    python tools/fuzz.py --replay FILE...             what one input comes to

Needs Atheris (https://github.com/google/atheris, part of the ``dev`` extra). It measures which branches of the package
an input reaches, and mutates those that reach new ones. Mutation alone would never get past the digests, so a mutator
that knows the file's records changes one thing, such as a field, a metadata value, a name, a document or a plane, and
then makes the root and the leaves right again; some inputs stay unsealed, to keep the digests themselves honest.

A finding is: an exception other than a coded one, a verdict that depends on how the bytes are held, an accepted file
that serialises to other bytes, a minute on one input, or more than a GiB of memory. It ends the run with a status
other than 0 and leaves the input in the folder of ``--findings``. FUZZING.md tells what was run and found.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LONGEST = 1 << 15  # bytes of an input: several times the largest fixture, few enough for hundreds of them a second
MEMORY_MIB = 1024
SECONDS_AN_INPUT = 60  # by the clock: the machine may be busy with something else


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="how long to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0 takes another each time")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with, where new ones are kept")
    parser.add_argument("--findings", type=Path, default=Path(), help="folder for inputs that fail (default: here)")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="inputs to run once each, unfuzzed")
    arguments = parser.parse_args()
    if arguments.replay:
        for path in arguments.replay:
            print(f"{path}: {Target().run(path.read_bytes())}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder)
        for path in sorted((ROOT / "fixtures").glob("*/*.aibit")):
            if path.stat().st_size <= LONGEST:
                shutil.copy(path, seeds / f"{path.parent.name}-{path.name}")
        return fuzz(arguments, seeds)


def fuzz(arguments: argparse.Namespace, seeds: Path) -> int:
    """Run libFuzzer in a child: it ends its own process, and has nowhere to return to."""
    corpus = arguments.corpus or seeds
    corpus.mkdir(parents=True, exist_ok=True)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        start([
            sys.argv[0], f"-max_total_time={arguments.seconds}", f"-max_len={LONGEST}", f"-seed={arguments.seed}",
            f"-timeout={SECONDS_AN_INPUT}", f"-rss_limit_mb={MEMORY_MIB}", "-print_final_stats=1", "-verbosity=1",
            f"-artifact_prefix={arguments.findings}{os.sep}", str(corpus), str(seeds),
        ])  # fmt: skip
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["aibit_format"]):
        import aibit_format.remote
        import aibit_format.writer  # noqa: F401 - instrumented with all that it imports
        from aibit_format.schemes import BUILTIN, make

        for name in BUILTIN:  # each is a module of its own
            make(name)
    # What an input claims must not be reserved either: address space, of which Python and numpy have taken some.
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (2 * MEMORY_MIB << 20),) * 2)
    atheris.Setup(options, Target().run, custom_mutator=Mutator(lambda data, size: atheris.Mutate(data, size)))
    atheris.Fuzz()


class Target:
    """What is done with an input."""

    def __init__(self) -> None:
        import verdict

        self._verdicts = verdict
        self._folder = tempfile.TemporaryDirectory(dir=verdict.memory())
        self._path = os.path.join(self._folder.name, "m.aibit")

    def run(self, data: bytes) -> str:
        with open(self._path, "wb") as out:
            out.write(data)
        mapped, held = self._verdicts.verdict(self._path), self._verdicts.verdict(data)
        if mapped != held:
            raise ValueError(f"mapped: {mapped}; from bytes: {held}")
        self._verdicts.check_comes_out_the_same(data)
        return mapped


class Mutator:
    """Changes one thing in a file, and makes its digests right again.

    ``mutate(data, max_size)`` is libFuzzer's own mutation of bytes, which also draws on the constants that the code
    compares with.
    """

    def __init__(self, mutate) -> None:
        import craft

        self._craft, self._mutate = craft, mutate
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
            return self._craft.reseal(data)
        return self._craft.reseal(data, leaves=True)

    def _bytes(self, data: bytes, rng: random.Random) -> bytes:
        return self._mutate(data, LONGEST)

    def _front_matter(self, data: bytes, rng: random.Random) -> bytes:
        """Other bytes in one section, of the same length."""
        rows = self._craft.table(data, "section")
        row = rows[rng.randrange(len(rows))]
        return self._replaced(data, int(row["offset"]), int(row["length"]))

    def _field(self, data: bytes, rng: random.Random) -> bytes:
        """A value nobody sane would write, a near one, or another record's, in a field of a record."""
        kind = rng.choice(("header", "section", "scheme", "scheme", "document", "tensor", "tensor", "plane"))
        spots = self._craft.spots.__wrapped__(data, kind)
        at, width = rng.choice(spots)
        old, other = (int.from_bytes(data[i : i + width], "little") for i in (at, rng.choice(spots)[0]))
        value = rng.choice((*self._craft.EVIL, old + 1, old - 1, old * 2, old + 64, old ^ 1 << rng.randrange(8), other,
                            rng.randrange(20)))  # fmt: skip
        return data[:at] + (value % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]

    def _row(self, data: bytes, rng: random.Random) -> bytes:
        """Another shape, dtype or scheme of a tensor, and planes of the lengths that follow, as far as any do."""
        from aibit_format.dtypes import DTYPES
        from aibit_format.reader import File

        file = File(data)
        name = rng.choice(file.keys())
        info, table = file.info(name), file.info_of_file.tensor_table.copy()
        planes, at = file.info_of_file.plane_table.copy(), file.info_of_file.index[name]
        shape = [rng.choice((n, n, n + 1, n * 2, n // 2, 1, 0, rng.randrange(70))) for n in info.shape]
        dtype = rng.choice((info.dtype, info.dtype, *DTYPES))
        table["shape"][at, : len(shape)], table["dtype"][at] = shape, DTYPES[dtype].code
        first = int(table["first_plane"][at])
        for i, spec in enumerate(info.scheme.planes(tuple(shape), dtype) if not info.alias_of else ()):
            planes["length"][first + i], planes["dtype"][first + i] = spec.nbytes, DTYPES[spec.dtype].code
            if spec.nbytes > LONGEST:
                raise ValueError("longer than an input may be")
        return self._craft.rebuilt(
            tensors=(len(table), table.tobytes()), planes=(len(planes), planes.tobytes()), metadata=(0, b"")
        )(data)

    def _metadata(self, data: bytes, rng: random.Random) -> bytes:
        """Another metadata section: bytes of any length, or one entry fewer, twice, or made anew."""
        row = self._craft.section(data, "metadata")
        body, count = self._craft.body(data, "metadata"), int(row["count"])
        if rng.random() < 0.5:
            content = self._mutate(body or b"\0", 1 << 12)
            return self._craft.rebuilt(metadata=(max(0, count + rng.choice((0, 0, 0, 1, -1))), content))(data)
        key = rng.choice((b"a.b", b"model.type", b"model.parameters", b"source.kind", b"quantization.error.tensor"))
        kind, is_array = rng.choice((1, 2, 3, 4, 5)), rng.choice((0, 1))
        entry = self._craft.entry(key, kind, self._mutate(rng.randbytes(8), 64), is_array, rng.choice((0, 1, 1, 2)))
        place = rng.choice((0, len(body)))
        return self._craft.rebuilt(metadata=(count + 1, body[:place] + entry + body[place:]))(data)

    def _name(self, data: bytes, rng: random.Random) -> bytes:
        record = rng.choice(("scheme", "document", "tensor"))
        rows, pool = self._craft.table(data, record), self._craft.body(data, "strings")
        i = rng.randrange(len(rows))
        old = pool[int(rows["name_offset"][i]) :][: int(rows["name_length"][i])]
        return self._craft.renamed(record, i, self._mutate(old, 300))(data)

    def _plane(self, data: bytes, rng: random.Random) -> bytes:
        """Other contents of a plane: of the whole of it, or of what may be scales."""
        row = rng.choice(self._craft.table(data, "plane"))
        return self._replaced(data, int(row["offset"]), int(row["length"]))

    def _document(self, data: bytes, rng: random.Random) -> bytes:
        """Other contents of a document, of any length."""
        from aibit_format.layout import align

        rows = self._craft.table(data, "document").copy()
        i = rng.randrange(len(rows))
        start, length = int(rows["offset"][i]), int(rows["length"][i])
        content = self._mutate(data[start : start + length] or b"{}", 1 << 12)
        rows["length"][i] = len(content)
        data = self._craft.rebuilt(documents=(len(rows), rows.tobytes()))(data)
        start = int(self._craft.table(data, "document")["offset"][i])
        room = align(len(content), 64)
        return data[:start] + content.ljust(room, b"\0")[: max(0, len(data) - start)] + data[start + room :]

    def _replaced(self, data: bytes, start: int, length: int) -> bytes:
        old = data[start : start + length]  # which may be less than the records claim
        content = self._mutate(old or b"\0", max(len(old), 1))[: len(old)]
        return data[:start] + content.ljust(len(old), b"\0") + data[start + len(old) :]


if __name__ == "__main__":
    sys.exit(main())
