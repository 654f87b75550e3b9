"""The files that every reader is tried on: good ones with what they say, bad ones with the code that they must get."""

import json
from pathlib import Path

import craft

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
GOOD = sorted((FIXTURES / "container").glob("*.aibit"))
INDEX = FIXTURES / "bad" / "index.json"


def twin(path):
    """What the file says, but for what only the twin does."""
    content = json.loads(path.with_suffix(".json").read_text("utf-8"))
    return {key: value for key, value in content.items() if key not in ("file", "about")}


def of_several_leaves():
    """A file whose data and documents have more than one leaf each, and places in it, by the code that damage gets."""
    document = bytes(range(256)) * 4100
    data = craft.good([("weight", "f32", "f32", (300_000,), None)], {}, {"blob.bin": document})
    row, plane = craft.table(data, "document")[0], craft.table(data, "plane")[0]
    ends = [int(row["offset"] + row["length"]), int(plane["offset"] + plane["length"])]
    return data, {"AIB-E602": [int(row["offset"]), ends[0] - 1, int(plane["offset"]), ends[1] - 1]}


def badly_signed():
    """Files with a section of signatures that has not the shape of one (AIB-E604), by what is wrong."""
    good = (FIXTURES / "container" / "signed.aibit").read_bytes()
    start = int(craft.table(good, "section")["offset"][-1])
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
        yield name, craft.reseal(good[:at] + content + good[at + len(content) :])


def bad(folder):
    """(path, code, level) of every bad file; one that is stored without a hole is put together in ``folder``."""
    if not INDEX.exists():
        yield from _hostile(folder)
        return
    for entry in json.loads(INDEX.read_text("utf-8")):
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


def _hostile(folder):
    import test_hostile

    for level, rows in (("open", test_hostile.STRUCTURE), ("full", test_hostile.FULL)):
        for i, (_, breaks, code) in enumerate(rows):
            path = folder / f"{level}{i}.aibit"
            path.write_bytes(breaks(test_hostile.GOOD))
            yield path, code, level
