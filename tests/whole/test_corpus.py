"""Every file of `fixtures/bad/` gets the code of the one rule that it breaks, whichever way it is read.

The list of hostile inputs, 1 to 84, whose numbers `spec/rules.toml` gives to files and tests:

Header. 1 empty file; 2 truncations of header and front matter; 3 wrong signature; 4 CR LF or 7-bit damage; 5 version 0;
6 newer major version; 7 byte-swapped fields; 8 unknown incompatible feature; 9 reserved bits or bytes set; 10 front
matter length absurd; 11 digest mismatch; 12 declared size not the file's; 13 sections overlapping, out of order,
unaligned, wrapping; 14 critical section twice, missing or unknown.
Counts and strings. 15 huge count in a tiny file; 16 count not equal to the entries; 17 string past the end or over the
cap; 18 invalid UTF-8; 19 NUL or control characters; 20 empty name; 21 over-long name; 22 characters outside the set;
23 reserved names.
Metadata. 24 unknown type; 25 wrong type for a known key; 26 duplicate key; 27 bool not 0 or 1; 28 array length that
wraps; 29 many zero-size elements; 30 nested or mixed arrays; 31 depth bomb; 32 NaN or infinity; 33 required key
missing; 34 metadata that contradicts the tensors; 35 absurd layer or vocabulary counts.
Tensors. 36 duplicate name; 37 rank over the limit; 38 huge dimension; 39 to 42 product, bytes, padding, total wrap;
43 plane length not what shape and scheme say; 44 unknown dtype, scheme or version; 45 row not a multiple of the block;
46 tail bits not zero; 47 offset before the data, past the end, wrapping; 48 misaligned plane; 49 alignment absurd;
50 overlap; 51 hole; 52 padding not zero; 53 bad alias; 54 order not canonical.
Quantization. 55 a plane missing or too many; 56 wrong scale count; 57 wrong scale dtype; 58 scale NaN, infinite or
negative; 59 block size 0 or unlisted; 60 bad codebook; 61 quant type and scheme disagree; 62 shape disagrees; 63 nested
state broken; 64 dtype outside the list; 65 scales not the rows; 66 index out of range.
Integrity. 67 one flipped bit in each region; 68 leaf table of wrong length or algorithm; 69 two equal planes swapped;
70 a required signature absent or wrong.
Documents. 71 invalid JSON, duplicate keys; 72 over the size cap; 73 config keys that fetch or run code; 74 chat
template that would run at load; 75 names that are paths; 76 external references; 77 token ids out of the vocabulary.
The reader's duties. 78 file changed or truncated after open; 79 FIFO, directory, device; 80 sparse terabytes;
81 half-written output; 82 reader and writer agree; 83 `python -O`; 84 mapped and read paths agree.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
import tracemalloc
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.container import documents, layout, parse, pruning, vocabulary
from aibit_format.errors import AibitError, FormatError
from aibit_format.file import writer
from aibit_format.file.reader import File
from aibit_format.io import mapped
from aibit_format.schemes.base import bad_tails
from aibit_format.schemes.opaque import Opaque
from tests.support.paths import ROOT
from tools.fixtures import (
    file_builder,
    limits,
    make_bad,
    mutators,
)
from tools.fixtures.bad_recipes import RECIPES

BAD = ROOT / "fixtures" / "bad"
INDEX = json.loads((BAD / "index.json").read_text("utf-8"))
WHOLE = [entry for entry in INDEX if "hole" not in entry]
IN_MEMORY = 16 << 20  # bytes of a file that a test may hold


def restored(entry, folder):
    """The path of a file, its hole put back."""
    if "hole" not in entry:
        return str(BAD / entry["file"])
    stored, path, hole = (BAD / entry["file"]).read_bytes(), folder / entry["file"], entry["hole"]
    with path.open("wb") as out:
        out.write(stored[: hole["offset"]])
        out.seek(hole["length"], os.SEEK_CUR)
        out.write(stored[hole["offset"] :])
    try:
        os.truncate(path, entry["size"])
    except OSError as error:
        pytest.skip(f"no sparse file of {entry['size']} bytes here: {error.strerror}")
    return str(path)


def code_of(source, verify="structure"):
    """The code that opening gets, or None; any exception but FormatError is the test's failure."""
    try:
        File(source, verify).close()
    except FormatError as error:
        return error.code
    return None


def value_code_of(source):
    """The code that asking for all values gets, of a file that opens and verifies."""
    with File(source, "full") as file:
        for name in file:
            try:
                file.dequantize(name)
            except FormatError as error:
                assert error.problems[0].tensor == name
                return error.code
    return None


def problems_of(source):
    """Every code that anything finds wrong with a file; digests and padding are looked at here, without the reader."""
    try:
        file = File(source)
    except FormatError as error:
        return {problem.code for problem in error.problems}
    data = bytes(file.storage.read_at(0, file.storage.size))
    found = set() if file_builder.body(data, "leaves") == file_builder.leaf_table(data) else {"AIB-E602"}
    strong = file.tables.section(layout.STRONG_LEAVES)
    if strong is not None:
        regions = [data[region.start : region.end] for region in file.tables.placement.regions]
        pieces = [region[at : at + layout.LEAF] for region in regions for at in range(0, len(region), layout.LEAF)]
        found |= set() if strong.data == b"".join(sha256(piece).digest() for piece in pieces) else {"AIB-E602"}
    unused = np.frombuffer(data, np.uint8).copy()
    unused[: file_builder.front_end(data)] = 0
    for record in ("document", "plane"):
        for row in file_builder.table(data, record):
            unused[int(row["offset"]) : int(row["offset"] + row["length"])] = 0
    found |= {"AIB-E603"} if unused.any() else set()
    for info in map(file.info, file):
        if isinstance(info.scheme, Opaque):
            found.add(info.scheme.code)
            continue
        planes = {plane.role: file.view(plane) for plane in info.planes}
        if list(info.scheme.bad_values(planes)):
            found.add("AIB-E502")
        elif [*bad_tails(info.planes, planes), *info.scheme.bad_codes(planes, info.shape)]:
            found.add("AIB-E503")
    for place in file.tables.documents.values():
        try:
            documents.check(place.name, data[place.offset : place.offset + place.length])
        except FormatError as error:
            found.add(error.code)
    try:
        vocabulary.kept(file.metadata, file.documents)
        pruning.kept(file.metadata, file.documents)
    except FormatError as error:
        found.add(error.code)
    return found


def test_recipes_and_rules_name_the_same_files():
    names = [bad.name for bad in make_bad.listed()]
    assert sorted(names) == sorted(set(names)) == sorted(RECIPES)


def test_the_files_are_what_their_recipes_make():
    assert make_bad.stale() == [], "run python -m tools.fixtures.make_bad"


def test_a_rule_has_a_file_or_a_line_that_says_why_none_can_be():
    """Codes without rules have such a line, too, and a rule with a file has none."""
    codes = tomllib.loads((ROOT / "spec" / "rules.toml").read_text("utf-8"))["code"]
    listed = {rule["id"] for code in codes for rule in code.get("rule", ())}
    listed |= {code["code"].removeprefix("AIB-") for code in codes if "rule" not in code}
    page = (BAD / "README.md").read_text("utf-8")
    section = page.partition("## Rules that no file here breaks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (E.+?) \| .+ \|$", section, re.MULTILINE)
    excused = [rule for row in rows for rule in row.split(", ")]
    assert sorted(listed - {entry["rule"] for entry in INDEX}) == sorted(excused)


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in BAD.iterdir()) < 5 << 20


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_every_way_of_reading_gives_the_code(entry, tmp_path):
    path = restored(entry, tmp_path)
    code, at_open = code_at(entry, "full"), code_at(entry, "open")
    sources = [path, f"file://{path}"]
    if entry["size"] < IN_MEMORY:
        sources += [data := Path(path).read_bytes(), bytearray(data), memoryview(data)]
    for source in sources:
        assert code_of(source) == code_of(source, "touched") == at_open
        assert code_of(source, "full") == code
        if entry["level"] == "decode":
            assert value_code_of(source) == entry["code"]


def code_at(entry, level):
    """The code that a file gets at a level, or None."""
    levels = ("open", "full", "decode")
    return entry["code"] if levels.index(entry["level"]) <= levels.index(level) else None


class Server(BaseHTTPRequestHandler):
    """Gives ranges of the bad files that are stored whole."""

    def do_GET(self):
        content = (BAD / self.path.strip("/")).read_bytes()
        start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        body = content[start : end + 1]
        self.send_response(206 if body else 416)
        self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}" if body
                         else f"bytes */{len(content)}")  # fmt: skip
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_over_http_the_codes_are_the_same():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            found = {entry["file"]: code_of(f"{url}/{entry['file']}", "full") for entry in WHOLE}
        finally:
            server.shutdown()
    assert found == {entry["file"]: code_at(entry, "full") for entry in WHOLE}


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_a_file_breaks_no_other_rule(entry, tmp_path):
    assert problems_of(restored(entry, tmp_path)) == {entry["code"]}


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_refusing_is_quick_and_takes_little_memory(entry, tmp_path):
    path = restored(entry, tmp_path)
    code_of(path, "full")  # what is loaded once, for instance a scheme's module
    started = time.perf_counter()
    tracemalloc.start()
    try:
        assert code_of(path, "full") == code_at(entry, "full")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (4 << 20) + 8 * min(entry["size"], IN_MEMORY)
    assert time.perf_counter() - started < 5


def print_codes():
    """What python -O runs."""
    for entry in WHOLE:
        sys.stdout.write(f"{code_of(str(BAD / entry['file']), 'full')}\n")


def test_python_that_skips_assertions_gives_the_codes():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-O", "-c", "from tests.whole import test_corpus; test_corpus.print_codes()"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(code_at(entry, "full")) for entry in WHOLE]


@pytest.mark.parametrize("entry", WHOLE, ids=lambda entry: entry["file"])
def test_what_is_printed_of_a_bad_file_is_plain_text(entry, capsys):
    valid = entry["level"] == "decode"
    assert main(["verify", str(BAD / entry["file"])]) == (0 if valid else 3)
    out, err = capsys.readouterr()
    assert ("unknown here" if valid else entry["code"]) in out + err
    assert (out + err).replace("\n", "").isprintable()


# In the order of section 3: each file has this broken, and all that follows.
HEADER_ORDER = [
    ("AIB-E102", lambda data: b"GGUF" + data[4:]),
    ("AIB-E104", file_builder.put("header", major=2)),
    ("AIB-E105", file_builder.put("header", incompatible=1)),
    ("AIB-E106", file_builder.put("header", reserved2=b"\1")),
    ("AIB-E107", file_builder.put("header", alignment=1)),
    ("AIB-E108", file_builder.put("header", file_size=1)),
    ("AIB-E110", file_builder.put("header", section_count=0)),
    ("AIB-E109", file_builder.put("header", front_matter_length=1)),
]


@pytest.mark.parametrize("first", range(len(HEADER_ORDER)))
def test_the_header_is_checked_in_the_order_of_the_text(first):
    good = np.frombuffer(mutators.TINY, np.uint8)
    data = good.copy()
    for _, breaks in HEADER_ORDER[first:]:
        changed = np.frombuffer(breaks(mutators.TINY), np.uint8)
        data = np.where(changed != good, changed, data)
    assert code_of(data.tobytes()) == HEADER_ORDER[first][0]


def test_nothing_is_parsed_under_a_wrong_root(monkeypatch):
    """A front matter of noise: the digest is looked at, and nothing else."""
    data = bytearray(mutators.TINY)
    start, end = file_builder.HEAD, file_builder.front_end(data)
    data[start:end] = b"\xff" * (end - start)
    monkeypatch.setattr(parse, "_sections", lambda *_: pytest.fail("looked inside"))
    assert code_of(data) == "AIB-E111"


def test_a_file_that_cannot_be_mapped_is_refused(monkeypatch):
    def fails(*_):
        raise OSError("no room in the address space")

    monkeypatch.setattr(mapped.np, "memmap", fails)
    assert code_of(str(BAD / WHOLE[-1]["file"])) == "AIB-E803"


# The writer


@pytest.mark.parametrize(
    "entry", [e for e in INDEX if e["level"] == "full" and e["code"] not in ("AIB-E602", "AIB-E603")],
    ids=lambda entry: entry["file"],
)  # fmt: skip
def test_the_writer_refuses_what_the_reader_refuses(entry, tmp_path, tmp_path_factory):
    """Planes and documents of a bad file, given to the writer."""
    with File(restored(entry, tmp_path_factory.mktemp("bad"))) as file:
        tensors = {
            writer.Tensor(i.name, i.shape, i.dtype, i.scheme, i.alias_of): {} if i.alias_of else file.planes(i.name)
            for i in map(file.info, file)
        }
        texts = {name: bytes(content) for name, content in file.documents.items()}
        metadata = {key: value for key, value in file.metadata.items() if key in (vocabulary.SIZE, *pruning.KEYS)}
        with pytest.raises(AibitError) as caught:
            writer.write(tmp_path / "out.aibit", tensors, metadata, texts)
    assert caught.value.code == (entry["code"] if entry["code"] > "AIB-E7" else "AIB-E501")
    assert os.listdir(tmp_path) == []


def test_converting_a_file_leaves_out_sections_that_nobody_knows(tmp_path):
    source = ROOT / "fixtures" / "container" / "extra-section.aibit"
    with File(str(source)) as file:
        assert len(file.tables.extra) == 1
    aibit.convert(source, tmp_path / "out.aibit")
    with File(str(tmp_path / "out.aibit"), "full") as file:
        assert [section.kind for section in file.tables.extra] == [layout.SLACK]


# Limits


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: limits.long_front_matter(layout.MAX_FRONT_MATTER).whole, id="front matter"),
        pytest.param(lambda: limits.many_entries(layout.MAX_METADATA), id="metadata"),
        pytest.param(lambda: limits.many_strings(layout.MAX_STRINGS).whole, id="strings"),
        pytest.param(lambda: limits.many_schemes(layout.MAX_SCHEMES), id="schemes"),
        pytest.param(lambda: limits.many_documents(layout.MAX_DOCUMENTS), id="documents"),
        pytest.param(lambda: limits.many_sections(layout.MAX_SECTIONS), id="sections"),
        pytest.param(lambda: mutators.config(b"[" * 64 + b"]" * 64), id="depth"),
        pytest.param(lambda: mutators.config(b"9" * 4300), id="digits"),
        pytest.param(lambda: mutators.named("tensor", b"a" * 255), id="name"),
    ],
)
def test_files_at_the_limits_are_good(data):
    assert problems_of(data()) == set()


def test_what_a_reader_does_not_check_is_good():
    """Section 22: plain values of any kind, int8 codes of -128, scales that no code reaches."""
    assert problems_of(mutators.altered(mutators.TINY, values={0: np.nan, 1: -np.inf})) == set()
    assert problems_of(mutators.altered(mutators.example("int8"), codes={0: -128}, row_absmax={0: 65504})) == set()
    assert problems_of(mutators.altered(mutators.example("gguf:q4_0"), blocks={1: 0xFB})) == set()
