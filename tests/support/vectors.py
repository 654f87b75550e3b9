"""The files that every reader is tried on: good ones with what they say, bad ones with the code that they must get."""

import json

from aibit_format.errors import FormatError
from aibit_format.file.reader import File
from tests.support.paths import FIXTURES
from tools.fixtures import file_builder

GOOD = sorted(path for path in FIXTURES.rglob("*.aibit") if path.with_suffix(".json").exists())
INDEX = json.loads((FIXTURES / "bad" / "index.json").read_text("utf-8"))


def twin(path):
    """What the file says, but for what only the twin does."""
    content = json.loads(path.with_suffix(".json").read_text("utf-8"))
    return {key: value for key, value in content.items() if key not in ("file", "about")}


def of_several_leaves():
    """A file whose data and documents have more than one leaf each, and places in it, by the code that damage gets."""
    document = bytes(range(256)) * 4100
    data = file_builder.good([("weight", "f32", "f32", (300_000,), None)], {}, {"blob.bin": document})
    row, plane = file_builder.table(data, "document")[0], file_builder.table(data, "plane")[0]
    ends = [int(row["offset"] + row["length"]), int(plane["offset"] + plane["length"])]
    return data, {"AIB-E602": [int(row["offset"]), ends[0] - 1, int(plane["offset"]), ends[1] - 1]}


def badly_signed():
    """Files with a section of signatures that has not the shape of one (AIB-E604), by what is wrong."""
    good = (FIXTURES / "container" / "signed.aibit").read_bytes()
    start = int(file_builder.table(good, "section")["offset"][-1])
    first = good[start : start + 104]
    changes = {
        "none": (0, bytes(104)),
        "algorithm": (0, b"\2"),
        "reserved": (7, b"\1"),
        "not zero where not used": (831, b"\1"),
        "used after one that is not": (208, first),
        "same key twice": (104, first),
        "keys out of order": (104, first[:8] + bytes(96)),
    }
    for name, (offset, content) in changes.items():
        at = start + offset
        yield name, file_builder.reseal(good[:at] + content + good[at + len(content) :])


def bad(folder):
    """(path, code, level) of every bad file; one that is stored without a hole is put together in ``folder``."""
    for entry in INDEX:
        path = FIXTURES / "bad" / entry["file"]
        if hole := entry.get("hole"):
            path = _with_hole(path.read_bytes(), folder / entry["file"], **hole)
        yield path, entry["code"], entry["level"]


def _with_hole(data, path, offset, length):
    with path.open("wb") as file:
        file.write(data[:offset])
        file.truncate(offset + length)
        file.seek(offset + length)
        file.write(data[offset:])
    return path


def reference_code_of(data):
    """What the package refuses the bytes of a file with, or None."""
    try:
        File(data, "full")
    except FormatError as error:
        return error.code
    return None


def damaged(rng, good):
    """A number of a table, a byte of the front matter or one of the body changed, and digests made right again."""
    data = bytearray(good)
    end = file_builder.front_end(good)
    places = [("table", record, at, width) for record in ("section", "scheme", "document", "tensor", "plane")
              for at, width in file_builder.spots(good, record)]  # fmt: skip
    kind = rng.choice(("table", "table", "front", "body" if end < len(data) else "front"))
    if kind == "table":
        _, _, at, width = rng.choice(places)
        old = int.from_bytes(data[at : at + width], "little")
        new = rng.choice([*file_builder.EVIL, rng.randrange(70), old + 1, old - 1, old + 64, old - 64])
        data[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    else:
        at = rng.randrange(128, end) if kind == "front" else rng.randrange(end, len(data))
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8)))
    return file_builder.reseal(data, leaves=kind == "body")
