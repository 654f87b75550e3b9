"""Inputs a reader must refuse that break several rules at once, and all that a file cannot show.

Files that break one rule each are in `fixtures/bad/`, see test_corpus.py. Here every row is one good file, with larger
planes than theirs, broken and sealed again, and the code that comes first. Each is opened mapped from disk and from
bytes, must get the same code both ways, quickly, and in little memory whatever the file claims.
"""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from aibit_format.container import layout
from aibit_format.container.metadata import decode, encode
from aibit_format.errors import AibitError, FormatError
from aibit_format.file.reader import LEVELS, File
from tests.support.paths import ROOT
from tools.fixtures import file_builder
from tools.fixtures.file_builder import (
    both,
    entry,
    flip,
    put,
    put_plane,
    put_section,
    put_tensor,
    put_values,
    rebuilt,
    renamed,
    swapped,
)

GOOD = file_builder.good()
FRONT = file_builder.front_end(GOOD) - file_builder.HEAD
HUGE = (1 << 64) - 1


def byte_swapped(data):
    data = bytearray(data)
    header = file_builder.table(data, "header")
    for name in header.dtype.names[1:]:
        if header.dtype[name].kind == "u":
            header[name] = header[name].byteswap()
    return file_builder.reseal(data)


def with_section(kind, flags=0, body=b"private"):
    return rebuilt(lambda entries: sorted([*entries, (kind, flags, 1, body)]))


def names_beyond_the_cap(count):
    """Every tensor's name is 65535 bytes of the pool: names of gigabytes from a file of megabytes."""

    def breaks(_):
        data = bytearray(file_builder.good([(f"tensor.{i:05}", "f32", "f32", (), None) for i in range(count)], {}, {}))
        rows = file_builder.table(data, "tensor")
        rows["name_offset"], rows["name_length"] = 0, 65535
        return file_builder.reseal(data)

    return breaks


def shape(*dims):
    return [*dims, *[0] * (8 - len(dims))]


def lengths_with_line_feeds(data):
    data = bytearray(data)
    for record in ("scheme", "document", "tensor"):
        file_builder.table(data, record)["name_length"] += 1
    return file_builder.reseal(data)


def with_pool(change):
    """Another string pool, the records as they are."""
    return lambda data: rebuilt(strings=(0, change(file_builder.body(data, "strings"))))(data)


def scales(*values):
    array = np.ones(80, "<f4")
    array[: len(values)] = values
    return put_values("quant", "row_absmax", array)


def swapped_bodies(data):
    """Two planes of one size, each with the other's contents."""
    data = bytearray(data)
    offsets = file_builder.table(data, "plane")["offset"].tolist()
    i, j = offsets[file_builder.PLANE["first", "values"]], offsets[file_builder.PLANE["second", "values"]]
    data[i : i + 5120], data[j : j + 5120] = data[j : j + 5120], data[i : i + 5120]
    return bytes(data)


def dropped_plane(data):
    rows = file_builder.table(data, "plane")[:-1]
    return rebuilt(planes=(len(rows), rows.tobytes()))(data)


def moved(name, role, by):
    return put_plane(name, role, offset=lambda old: np.uint64(int(old) + by))


def gap(record, i, data):
    row = file_builder.table(data, record)[i]
    return int(row["offset"] + row["length"])


# (class and what is broken, how, code)
STRUCTURE = [
    # Header
    ("7 every field byte-swapped", byte_swapped, "AIB-E104"),
    ("7 fields but the version byte-swapped", both(byte_swapped, put("header", major=1)), "AIB-E107"),
    ("10 front matter too short for the sections", put("header", front_matter_length=FRONT - 64), "AIB-E208"),
    ("10 front matter longer than the sections", put("header", front_matter_length=FRONT + 64), "AIB-E208"),
    ("13 records of sections out of order", swapped("section", 2, 3), "AIB-E201"),
    # Counts and strings
    *[(f"15 2^32-1 {name}", put_section(name, count=(1 << 32) - 1), code) for name, code in (
        ("metadata", "AIB-E204"), ("schemes", "AIB-E203"), ("documents", "AIB-E203"), ("tensors", "AIB-E203"),
        ("planes", "AIB-E203"), ("strings", "AIB-E203"), ("leaves", "AIB-E601"))],
    ("15 too many documents, of zeros", rebuilt(documents=(4097, bytes(4097 * 32))), "AIB-E204"),
    ("15 too many schemes, of zeros", rebuilt(schemes=(4097, bytes(4097 * 32))), "AIB-E204"),
    ("17 CR LF for every line feed", with_pool(lambda pool: pool.replace(b"\n", b"\r\n")), "AIB-E213"),
    ("17 names share bytes", put_tensor("norm", name_offset=0), "AIB-E212"),
    ("17 name split in two", with_pool(lambda pool: pool.replace(b"quant.twin", b"quant\ntwin")), "AIB-E214"),
    ("17 name split in two, and two joined",
     with_pool(lambda pool: pool.replace(b"quant.twin\n", b"quant\ntwin.")), "AIB-E214"),
    ("17 length with the line feed", put_tensor("norm", name_length=5), "AIB-E214"),
    ("17 every length with the line feed", lengths_with_line_feeds, "AIB-E213"),
    ("19 line feed in a tensor name", renamed("tensor", 0, b"fir\nst"), "AIB-E214"),
    ("19 line feed in a scheme name", renamed("scheme", 4, b"int8\n"), "AIB-E213"),
    ("19 newline in a document name", renamed("document", 0, b"config\n"), "AIB-E701"),
    ("21 name over the cap, past the pool", put_tensor("norm", name_length=65535), "AIB-E211"),
    # Tensors
    ("43 plane of 0, the others where they were", put_plane("first", "values", length=0), "AIB-E405"),
    ("47 end of the plane wraps", put_plane("first", "values", offset=HUGE - 5119), "AIB-E408"),
    ("49 another allowed alignment", put("header", alignment=64), "AIB-E410"),
    ("50 plane over the small ones", put_plane("first", "values", offset=12288), "AIB-E410"),
    ("51 hole", moved("scalar", "values", 64), "AIB-E410"),
    ("54 plane records in another order", swapped("plane", 1, 2), "AIB-E412"),
    ("54 schemes in another order", swapped("scheme", 0, 1, "version", "parameters", "name_length", "name_offset"),
     "AIB-E212"),
    ("54 schemes not sorted", both(renamed("scheme", 2, b"f64"), renamed("scheme", 1, b"f8_e4m3")), "AIB-E416"),
    ("54 scheme twice", renamed("scheme", 2, b"f32"), "AIB-E416"),
    ("54 scheme nobody uses", put_tensor("norm", scheme=3), "AIB-E416"),
    ("55 a plane missing", dropped_plane, "AIB-E401"),
    ("56 a scale too few, the others where they were", put_plane("quant", "row_absmax", length=316), "AIB-E405"),
    ("65 scales not the rows", put_tensor("quant", shape=shape(40, 128)), "AIB-E405"),
]  # fmt: skip

# Damage that structure cannot see: every one of these opens, and a full verification refuses it.
FULL = [
    ("52 padding between documents and data", flip(lambda data: gap("document", 2, data) // 64 * 64 + 64), "AIB-E603"),
    ("58 scale in a larger plane", scales(1, 2, -1), "AIB-E502"),
    (
        "67 bit of a JSON document",
        flip(lambda data: int(file_builder.table(data, "document")["offset"][0])),
        "AIB-E602",
    ),
    ("67 last bit of the file", flip(-1), "AIB-E602"),
    ("69 equal planes swapped", swapped_bodies, "AIB-E602"),
]


def named(rows):
    return [pytest.param(*row[1:], id=row[0].replace(" ", "-")) for row in rows]


@pytest.fixture(scope="module", autouse=True)
def modules_are_loaded():
    """So that the memory measured below is what a file takes."""
    File(GOOD, "full")


@pytest.fixture(params=["mapped", "bytes"])
def source(request, tmp_path):
    """Bytes as a source to open: the bytes, or a file that holds them."""

    def put_down(data):
        if request.param == "bytes":
            return data
        path = tmp_path / "m.aibit"
        path.write_bytes(data)
        return str(path)

    return put_down


def code_of(source, verify="structure"):
    """The code that opening gets, or None; any exception but FormatError is the test's failure."""
    try:
        File(source, verify)
    except FormatError as error:
        return error.code
    return None


def test_the_good_file_is_good_at_every_level(source):
    for level in LEVELS:
        assert code_of(source(GOOD), level) is None


def test_taking_the_good_file_apart_and_putting_it_together_changes_nothing():
    assert file_builder.reseal(GOOD, leaves=True) == GOOD
    assert rebuilt()(GOOD) == GOOD
    assert renamed("tensor", 0, b"first")(GOOD) == GOOD


@pytest.mark.parametrize(("breaks", "code"), named(STRUCTURE))
def test_refused(breaks, code, source):
    bad = breaks(GOOD)
    assert bad != GOOD
    where = source(bad)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            File(where)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == code, str(caught.value)
    assert peak < (4 << 20) + 4 * len(bad)
    assert time.perf_counter() - started < 5
    # The same verdict whatever was asked for.
    assert code_of(where, "full") == code


@pytest.mark.parametrize(("breaks", "code"), named(FULL))
def test_refused_by_a_full_verification(breaks, code, source):
    where = source(breaks(GOOD))
    with File(where) as file, pytest.raises(FormatError) as caught:
        file.verify()
    assert caught.value.code == code, str(caught.value)
    assert code_of(where, "full") == code


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, -0.0])
def test_a_bad_scale_is_refused_by_dequantize_and_names_its_tensor(value, source):
    file = File(source(scales(1, value)(GOOD)))
    with pytest.raises(FormatError) as caught:
        file.dequantize("quant")
    assert (caught.value.code, caught.value.tensor, caught.value.plane) == ("AIB-E502", "quant", "row_absmax")
    assert np.isfinite(file.dequantize("quant.twin")).all()


def test_names_far_over_the_cap_cost_nothing(source):
    """Six thousand names of 65535 bytes, 400 MB together, all in the same 90 KB of the pool."""
    bad = names_beyond_the_cap(6000)(GOOD)
    where = source(bad)
    tracemalloc.start()
    try:
        assert code_of(where) == "AIB-E211"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (4 << 20) + 4 * len(bad)


def test_an_extra_section_that_is_not_critical_is_kept_as_it_is(source):
    data = both(with_section(9), with_section(0x8001))(GOOD)
    check_accepted(data, File(source(data), "full"))


def test_a_newer_minor_version_and_compatible_features_open(source):
    assert code_of(source(put("header", minor=7, compatible=HUGE)(GOOD)), "full") is None


def with_package():
    """The environment in which another Python finds what this one runs."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


# 83: rules are no assertions


def print_codes():
    """What python -O runs: the code of every row."""
    for _, breaks, _ in STRUCTURE:
        sys.stdout.write(f"{code_of(breaks(GOOD))}\n")
    for _, breaks, _ in FULL:
        sys.stdout.write(f"{code_of(breaks(GOOD), 'full')}\n")


def test_83_python_that_skips_assertions_refuses_the_same():
    code = "from tests.whole import test_hostile; test_hostile.print_codes()"
    result = subprocess.run(
        [sys.executable, "-O", "-c", code], env=with_package(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    found = result.stdout.split()
    rows = STRUCTURE + FULL
    assert len(found) == len(rows)
    assert {row[0]: at for row, at in zip(rows, found, strict=True) if at != row[2]} == {}


# 2: truncations


def test_2_every_truncation_of_header_and_front_matter_is_refused(tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    for length in range(file_builder.front_end(GOOD), -1, -1):
        os.truncate(path, length)
        expected = "AIB-E101" if length < file_builder.HEAD else "AIB-E108"
        assert code_of(str(path)) == code_of(GOOD[:length]) == expected, length


@pytest.mark.parametrize("declared", [False, True])
def test_2_every_truncation_of_the_body_is_refused(declared):
    for length in [*range(file_builder.front_end(GOOD), len(GOOD), 211), len(GOOD) - 1]:
        cut = GOOD[:length]
        assert code_of(put("header", file_size=length)(cut) if declared else cut) in {"AIB-E108", "AIB-E408"}, length


# 78 to 80: files that change, are none, or claim much


@pytest.mark.parametrize("change", ["truncated", "grown", "rewritten"])
def test_78_a_file_changed_after_it_was_opened_fails_to_verify(change, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    file = File(str(path))
    if change == "truncated":
        os.truncate(path, 100)
    else:
        with open(path, "r+b") as out:
            out.seek(0, os.SEEK_END if change == "grown" else os.SEEK_SET)
            out.write(GOOD)
        os.utime(path, ns=(1, 1))
    with pytest.raises(FormatError) as caught:
        file.verify()
    assert caught.value.code == "AIB-E802"


@pytest.mark.parametrize("call", ["verify()", "planes('first')", "dequantize('first')", "documents['config.json']"])
@pytest.mark.parametrize(
    "first", ["", "os.rename('m.aibit', 'moved'); os.symlink('moved', 'm.aibit')", "os.chdir('/')"],
    ids=["", "renamed", "from-elsewhere"],
)  # fmt: skip
def test_78_a_file_truncated_after_it_was_opened_is_an_error_and_not_a_crash(call, first, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    program = f"""
import os, sys
from aibit_format.errors import FormatError
from aibit_format.file.reader import open
os.chdir({str(tmp_path)!r})
file = open("m.aibit")
{first}
os.truncate({str(path)!r}, 0)
try:
    print(file.{call})
except FormatError as error:
    sys.exit(0 if error.code == "AIB-E802" else str(error))
sys.exit("nothing was raised")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=with_package(), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-500:])


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_78_an_open_file_that_is_replaced_or_removed_keeps_its_content(change, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    file = File(str(path))
    if change == "replaced":
        (tmp_path / "new").write_bytes(b"something else")
        os.replace(tmp_path / "new", path)
    else:
        path.unlink()
    assert file.verify().level == "full"
    assert bytes(file.documents["config.json"]) == file_builder.DOCUMENTS["config.json"]


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "socket", "missing", "loop"])
def test_79_what_is_no_regular_file_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, codes = "m.aibit", {"AIB-E801"}
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "device":
        path = os.devnull
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
        codes = {"AIB-E801", "AIB-E803"}
    else:
        codes = {"AIB-E803"}
        if kind == "loop":
            os.symlink(path, path)
    with pytest.raises(FormatError) as caught:
        File(path)
    assert caught.value.code in codes
    assert caught.value.path == path


def sparse(tmp_path, head, size):
    path = tmp_path / "m.aibit"
    path.write_bytes(head)
    try:
        os.truncate(path, size)
    except OSError as error:
        pytest.skip(f"no sparse file of {size} bytes here: {error.strerror}")
    return str(path)


SPARSE = 4 << 40


@pytest.mark.parametrize(
    ("breaks", "code"),
    named([
        ("zeros", lambda _: b"", "AIB-E102"),
        ("size not declared", lambda data: data, "AIB-E108"),
        ("size declared", put("header", file_size=SPARSE), "AIB-E108"),
        ("front matter over the cap",
         put("header", file_size=SPARSE, front_matter_length=layout.MAX_FRONT_MATTER + 64), "AIB-E109"),
        ("front matter of terabytes", put("header", file_size=SPARSE, front_matter_length=SPARSE // 2), "AIB-E109"),
    ]),
)  # fmt: skip
def test_80_sparse_terabytes_are_refused_quickly_and_in_little_memory(breaks, code, tmp_path):
    path = sparse(tmp_path, breaks(GOOD), SPARSE)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        assert code_of(path) == code
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert time.perf_counter() - started < 2


def test_80_a_real_plane_of_a_terabyte_is_a_view_and_costs_nothing(tmp_path):
    size = (1 << 40) + 4096
    leaves = -(-size // layout.LEAF)  # a million: 8 MiB
    small = file_builder.good([("huge", "i8", "i8", (4096,), None)], {}, {})
    data = bytearray(rebuilt(leaves=(leaves, bytes(8 * leaves)))(small))
    front = file_builder.front_end(data)
    start = layout.align(front, layout.LARGE_ALIGNMENT)
    file_builder.table(data, "tensor")["shape"][0, 0] = size
    file_builder.table(data, "plane")["length"], file_builder.table(data, "plane")["offset"] = size, start
    file_builder.table(data, "header")["file_size"] = start + size
    file = File(sparse(tmp_path, file_builder.reseal(data)[:front], start + size))
    view = file.planes("huge")["values"]
    assert view.shape == (size,)
    assert view[-1] == 0


# 84 and all the rest: what nobody thought of


def outcome(data):
    """None if the file is refused as it should be; the open file if it is accepted; else the exception goes up."""
    try:
        return File(data)
    except AibitError as error:
        assert error.code.startswith("AIB-E")
        return None


def check_accepted(data, file):
    """What must hold for every file that opens: one encoding, and no tensor that cannot be read."""
    info = file.tables
    front = info.front_matter()
    assert info.header(front) + front == data[: file_builder.HEAD + len(front)], "accepted, and comes out otherwise"
    for name in file:
        planes = file.planes(name)
        assert [planes[p.role].shape for p in file.info(name).planes] == [p.shape for p in file.info(name).planes]
        try:
            with np.errstate(all="ignore"):
                values = file.dequantize(name)
        except AibitError:
            continue
        assert values.shape == file.info(name).shape
        assert values.dtype == np.float32
    with contextlib.suppress(AibitError):
        file.verify()


def test_single_byte_changes_are_refused_or_harmless():
    rng = random.Random(1)
    front = file_builder.front_end(GOOD)
    for _ in range(2000):
        data = bytearray(GOOD)
        at = rng.randrange(front)
        data[at] ^= rng.randrange(1, 256)
        # Every byte of header and front matter is under the root, or is the root.
        assert outcome(bytes(data)) is None, at


SHOTS = 400
SEEDS = [
    ("everything", lambda: GOOD),
    ("extra sections", lambda: with_section(0x8001)(with_section(9)(GOOD))),
    ("no documents", lambda: file_builder.good(documents={})),
    ("no tensors", lambda: file_builder.good((), {}, file_builder.DOCUMENTS)),
    ("nothing", lambda: file_builder.good((), {}, {})),
    ("alignment 64", lambda: file_builder.good(alignment=64)),
    ("no elements", lambda: file_builder.good([
        ("a", "f32", "f32", (0, 1, 1), None),
        ("b", "int8", "f16", (0, 1, 1), None),
        ("c", "bool", "bool", (1, 0), None),
    ], {}, {})),
]  # fmt: skip


def evil_bytes(data, rng, good):
    """A value nobody sane would write, at an aligned place of header or front matter."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(0, file_builder.front_end(good) - width, width)
    data[at : at + width] = (rng.choice(file_builder.EVIL) % (1 << 8 * width)).to_bytes(width, "little")


def evil_field(data, rng, good):
    """Such a value, a neighbouring one or another record's, in a field of a record."""
    kind = rng.choice(("header", "section", "scheme", "document", "tensor", "tensor", "tensor", "plane"))
    if not (spots := file_builder.spots(good, kind)):
        return
    at, width = rng.choice(spots)
    old, other = (int.from_bytes(good[i : i + width], "little") for i in (at, rng.choice(spots)[0]))
    value = rng.choice((*file_builder.EVIL, old + 1, old - 1, old + 64, old ^ 2, other)) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, "little")


@pytest.mark.parametrize("change", [evil_bytes, evil_field])
@pytest.mark.parametrize(
    ("make", "seed"), [pytest.param(make, i, id=name.replace(" ", "-")) for i, (name, make) in enumerate(SEEDS)]
)
def test_evil_values_under_a_right_root_are_refused_or_make_another_good_file(make, seed, change):
    rng = random.Random(seed)
    good = make()
    accepted = 0
    for i in range(SHOTS):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 3))):
            change(data, rng, good)
        data = file_builder.reseal(data)
        try:
            file = outcome(data)
            if file is not None:
                accepted += 1
                check_accepted(data, file)
        except Exception as error:
            error.add_note(f"change {i} of seed {seed}: {differences(good, data)}")
            raise
    assert accepted


def differences(good, data):
    at = [i for i in range(len(good)) if good[i] != data[i] and not file_builder.HEAD - 16 <= i < file_builder.HEAD]
    return ", ".join(f"{i}: {good[i]:#04x} -> {data[i]:#04x}" for i in at)


def random_metadata(rng):
    """(count, bytes): noise, or entries that are almost right."""
    if rng.random() < 0.2:
        return rng.choice((0, 1, 2, rng.getrandbits(32))), rng.randbytes(rng.randrange(80))
    entries = []
    for i in range(rng.randrange(1, 4)):
        key = rng.choice((b"a.b", b"a.b%d" % i, b"model.type", b"model.parameters", b"source.kind"))
        kind, is_array = rng.choice((1, 1, 2, 3, 4, 4, 5, 6)), rng.choice((0, 0, 1))
        count = rng.choice((0, 1, 1, 2, 3)) if is_array else 1
        item = {1: 8, 2: 8, 3: 1}.get(kind, rng.randrange(4))
        if kind in (4, 5) and is_array:
            content = b"".join(item.to_bytes(4, "little") + rng.randbytes(item) for _ in range(count))
        else:
            content = bytes(rng.choice((0, 1)) for _ in range(count)) if kind == 3 else rng.randbytes(item * count)
        entries.append(entry(key, kind, content, is_array, count))
    data = bytearray(b"".join(sorted(entries)))
    if rng.random() < 0.3:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 0x7F, 0xFF))
    return len(entries), bytes(data)


def test_random_metadata_is_refused_or_has_one_encoding():
    rng = random.Random(3)
    accepted = 0
    for _ in range(6000):
        _, data = random_metadata(rng)
        try:
            values = decode(data)
        except FormatError:
            continue
        accepted += 1
        assert encode(values) == data, data
    assert accepted > 500


def test_random_metadata_in_a_file_is_refused_or_comes_out_the_same():
    rng = random.Random(4)
    small = file_builder.good((), {}, {})
    accepted = 0
    for _ in range(600):
        count, data = random_metadata(rng)
        bad = rebuilt(metadata=(count % (1 << 32), data))(small)
        file = outcome(bad)
        if file is not None:
            accepted += 1
            check_accepted(bad, file)
    assert accepted > 50
