"""The files that every reader is tried on: good ones with what they say, bad ones with the code that they must get."""

import random

from aibit_format.dtypes import DTYPES
from aibit_format.errors import AibitError, FormatError
from aibit_format.file.reader import File
from aibit_format.schemes import BUILTIN, NUMBERED, make
from tests.support.paths import FIXTURES
from tools.conformance import corpus
from tools.conformance.corpus import GOOD, INDEX, twin
from tools.fixtures import file_builder

__all__ = [
    "GOOD", "INDEX", "JSON_NAMES", "bad", "badly_signed", "damaged", "json_documents", "of_several_leaves",
    "planes_by_scheme", "reference_code_of", "twin",
]  # fmt: skip


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
    return [(case.path, case.code, case.level) for case in corpus.bad(folder)]


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


NUMBERS = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 32, 64, 128, 256, 4096, 4097, 65535, 65536, 65552, (1 << 32) - 1]
LENGTHS = [0, 1, 2, 3, 16, 31, 32, 33, 64, 96, 128, 255, 256, 257, 512]


def planes_by_scheme(count):
    """(scheme, version, parameters, shape, dtype, its planes or None), at random and always the same.

    Parameters are the six of the scheme, and after them the two of the tensor. None stands for planes that do not fit.
    """
    rng = random.Random(0)
    for _ in range(count):
        name = rng.choice(list(BUILTIN))
        version = rng.choice([make(name).version, *(number for other, number in NUMBERED if other == name)])
        own = [rng.choice((0, 1, 2)) if make(name, version).of_tensor else 0, 0]
        usual = make(name, version).parameters if rng.random() < 0.5 else ()
        parameters = [*usual, *[0] * (6 - len(usual))]
        for i in range(rng.choice((0, 1, 2, 2, 3, 3))):
            parameters[i] = rng.choice(NUMBERS if i == 0 else (0, 1, 2, 10, 11, 12, 16))
        parameters[rng.randrange(6)] += rng.random() < 0.05
        shape = tuple(rng.choice(LENGTHS) for _ in range(rng.choice((0, 1, 2, 2, 2, 3, 4))))
        dtype = rng.choice(["f16", "bf16", "f32", "i8", name if name in DTYPES else "f32"])
        try:
            scheme = make(name, version, tuple(parameters)).for_tensor(own)
            wanted = [(p.role, p.dtype, list(p.shape)) for p in scheme.planes(shape, dtype)]
        except AibitError:
            wanted = None
        yield name, version, parameters + own, shape, dtype, wanted


JSON_NAMES = [
    "config.json", "a/config.json", "tokenizer.json", "a/vocab.json", "other.json", "x.JSON", "config.jsonx",
]  # fmt: skip
JSON = [
    "{}", " [1] ", '"a"', "true", "nul", "1 2", "[1,]", "{'a':1}", '{"a":1}x', "01", "+1", ".5", "1.", "-", "-0",
    "[1e999]", "NaN",
    "[Infinity]", "-Infinity", '{"a":NaN}', '{"a":1,"a":2}', '{"a":1,"\\u0061":2}', '{"":1}', '"\x01"', '"\t"',
    '"\x7f"', '"\\ud800"', '"\\u00zz"', '"\\x"', '"\\', "\ufeff{}", "\xa01", "\x0c1", "\x00", "\u0661", '"\u0661"',
    "9" * 4300, "9" * 4301, "-" + "9" * 4300, "-" + "9" * 4301, "1" * 5000 + ".5", "1" * 5000 + "e5", "1e" + "1" * 5000,
    "[" * 64 + "]" * 64, "[" * 65 + "]" * 65, "[" * 63 + "1" + "]" * 63, "[" * 64 + "1" + "]" * 64, "[" * 100_000,
    '{"a":' * 63 + "1" + "}" * 63, '{"a":' * 64 + "1" + "}" * 64, '{"a":' * 64 + "{}" + "}" * 64, '{"a":"[[[\\"["}',
    '{"auto_map":null}', '{"auto_map":{}}', '{"x":[{"auto_map":0}]}', '{"auto_\\u006dap":1}',
    '{"trust_remote_code":false}', '{"quantization_config":1}', '{"x":{"quantization_config":1}}',
    '{"quantization_config":null}', b'"\xff"', b'"\xed\xa0\x80"', b"\xff",
]  # fmt: skip


def json_documents(name):
    """(content, file) of a document of this name with each content, good or bad."""
    for content in JSON:
        content = content if isinstance(content, bytes) else content.encode()
        # The writer refuses what is tried here: it gets spaces and a digit, which are written over.
        data = bytearray(file_builder.good([], {}, {name: b" " * (len(content) - 1) + b"1"}))
        start = int(file_builder.table(data, "document")["offset"][0])
        data[start : start + len(content)] = content
        yield content, file_builder.reseal(data, leaves=True)
