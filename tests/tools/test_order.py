"""The order of checks that section 14 of the specification states is that of the package: two faults show it."""

import itertools
import json
import tomllib

import numpy as np
import pytest

from aibit_format.container import layout
from aibit_format.errors import FormatError
from aibit_format.file import sharded_reader
from aibit_format.file.reader import File
from tests.support.paths import ROOT
from tools.conformance.python import contents, ggml, numbers, places, reader, schemes
from tools.fixtures import file_builder, mutators

RULES = tomllib.loads((ROOT / "spec" / "rules.toml").read_text("utf-8"))
INDEX = json.loads((ROOT / "fixtures" / "bad" / "index.json").read_text("utf-8"))
APART = layout.TENSOR.sizeof()  # bytes between two faults, so that neither undoes the other
OF_DIGESTS = ("AIB-E111", "AIB-E601", "AIB-E602")  # sealing a file with another fault would take these away


def steps():
    """Map each rule to where it first comes: rules of one code, and all rules of a step through a table, share one."""
    found, at = {}, itertools.count()
    for step in RULES["step"]:
        through = next(at)
        for group in step["rules"]:
            place = through if "each" in step else next(at)
            for rule in [group] if isinstance(group, str) else group:
                found.setdefault(rule, place)
    return found


PLACE = steps()


def code_of(data):
    try:
        File(bytes(data), "full")
    except FormatError as error:
        return error.code
    return None


def faults():
    """Yield (base, rule, code, bytes that differ) of each bad file that is a good one with other bytes in place."""
    bases = [np.frombuffer(data, np.uint8) for data in (mutators.BASE, mutators.TINY)]
    for entry in INDEX:
        if "hole" in entry or entry["code"] in OF_DIGESTS or PLACE[entry["rule"]] <= PLACE["E108.1"]:
            continue
        data = np.frombuffer((ROOT / "fixtures" / "bad" / entry["file"]).read_bytes(), np.uint8)
        for base in bases:
            if len(base) == len(data):
                places = np.flatnonzero(data != base)
                leaves = file_builder.section(base.tobytes(), "leaves")
                low, high = int(leaves["offset"]), int(leaves["offset"] + leaves["length"])
                core = places[(places >= file_builder.HEAD) & ~((places >= low) & (places < high))]
                if 0 < len(core) < 100 and places.min() >= file_builder.HEAD - 16:  # of the header only the root
                    yield base, entry, core, data[core]


def pairs():
    """Yield, for each two codes that two such faults can have at once, one file with both, the earlier rule first."""
    tried = set()
    for first, second in itertools.combinations(faults(), 2):
        if PLACE[first[1]["rule"]] > PLACE[second[1]["rule"]]:
            first, second = second, first
        (base, a, at_a, of_a), (other, b, at_b, of_b) = first, second
        codes = a["code"], b["code"]
        same = a["code"] == b["code"] or PLACE[a["rule"]] == PLACE[b["rule"]] or base is not other
        if same or codes in tried or np.abs(at_a[:, None] - at_b).min() < APART:
            continue
        tried.add(codes)
        data = base.copy()
        data[at_b], data[at_a] = of_b, of_a
        try:
            sealed = file_builder.reseal(data.tobytes(), leaves=True)
        except (ValueError, IndexError, OverflowError, MemoryError):  # no leaves can be computed
            sealed = file_builder.reseal(data.tobytes())
        yield f"{a['file']} {b['file']}", sealed, codes


def test_every_rule_has_a_step_and_every_step_rules():
    listed = {rule["id"] for code in RULES["code"] for rule in code.get("rule", ())}
    assert listed == PLACE.keys()
    assert all(set(step) <= {"phase", "of", "each", "rules"} for step in RULES["step"])
    phases = [step["phase"] for step in RULES["step"]]
    assert [phase for phase, _ in itertools.groupby(phases)] == ["open", "demanded", "full", "decode", "set"]


def test_of_two_faults_the_earlier_one_is_reported():
    found = [(names, code_of(data), codes) for names, data, codes in pairs()]
    assert len(found) > 150
    assert [row for row in found if row[1] != row[2][0]] == []


def test_no_sum_of_lengths_is_rounded():
    """A plane that ends a few bytes after the file, where everything before it is in its place."""
    good = file_builder.good([("w", "i8", "i8", (100_000,), None)], {}, {}, alignment=64)
    for length in (100_001, 100_400, 101_000, 200_000):
        data = file_builder.put("tensor", 0, shape=mutators.shape(length))(good)
        assert code_of(file_builder.put("plane", 0, length=length)(data)) == "AIB-E408"


def test_shapes_are_looked_at_tensor_by_tensor():
    """The earlier tensor decides, whatever the later one breaks."""
    for first, second in ((1, 3), (3, 1)):
        data = file_builder.put("tensor", first, rank=1, shape=mutators.shape(5))(mutators.BASE)  # int8 needs rows
        data = file_builder.put("tensor", second, shape=mutators.shape(1 << 59, 1 << 59))(data)
        assert code_of(data) == ("AIB-E413" if first < second else "AIB-E403")


def test_lengths_of_items_come_before_the_array_that_is_empty():
    entry = mutators.entry(b"a.b", mutators.STRING, bytes(4), 1, 0)
    assert code_of(mutators.metadata(entry)) == "AIB-E305"


@pytest.mark.parametrize(("start", "code"), [
    (b"\x89aibit\r\n\x1a\r", "AIB-E103"), (b"\taibit\r\n\x1a\n", "AIB-E103"), (b"aibit\r\n\x1a\n\0", "AIB-E103"),
    (b"aibit", "AIB-E103"), (b"\x89aibit\r\n\x1a\n", "AIB-E101"), (b"\x89a", "AIB-E101"), (b"", "AIB-E101"),
    (b"\x89aibX\r\n\x1a\n", "AIB-E102"), (b"\x89\x89aibit\r\n\x1a", "AIB-E102"), (b"aib", "AIB-E102"),
])  # fmt: skip
def test_what_a_file_begins_with_tells_a_transfer_from_another_format(start, code, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(start)
    assert code_of(start) == code
    with pytest.raises(numbers.RuleError) as caught:
        reader.File(str(path))
    assert caught.value.code == code


def shown():
    """The table of section 14: file, rule, and the other rule that it breaks."""
    text = (ROOT / "spec" / "aibit-1.md").read_text("utf-8").partition("### The order of checks")[2]
    rows = [line.split(" | ") for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return [(row[0].strip("| `"), row[1], row[2].split(":")[0]) for row in rows]


@pytest.mark.parametrize(("name", "rule", "other"), shown())
def test_the_order_decides_the_code_of_fixtures_that_break_two_rules(name, rule, other, monkeypatch):
    """The plain reader, made to pass over the first rule, meets the other."""
    entry = next(entry for entry in INDEX if entry["file"] == f"{name}.aibit")
    assert entry["rule"] == rule and PLACE[rule] < PLACE[other]

    def need(holds, code, reason):
        if not holds and code != entry["code"]:
            raise numbers.RuleError(code, reason)

    for module in (contents, ggml, numbers, places, reader, schemes):
        monkeypatch.setattr(module, "need", need)
    with pytest.raises(numbers.RuleError) as caught:
        file = reader.File(str(ROOT / "fixtures" / "bad" / f"{name}.aibit"))
        reader.verify(file)
        for tensor in file.tensors:
            file.values(tensor)
    assert caught.value.code == f"AIB-{other.split('.')[0]}"


PUBLIC = ROOT / "fixtures" / "keys" / "test-only.pub"


def test_a_signature_is_looked_at_after_the_tables_and_before_the_rest():
    bad_table = file_builder.put("tensor", 0, rank=9)(mutators.TINY)
    bad_leaf = file_builder.flip(-1)(mutators.TINY)
    for data, code in ((bad_table, "AIB-E402"), (bad_leaf, "AIB-E606")):
        with pytest.raises(FormatError) as caught:
            File(data, "full", signed_by=PUBLIC)
        assert caught.value.code == code


def test_a_shard_is_looked_at_as_a_file_before_its_set_is(tmp_path):
    """Level full of the first; then its name; then each other one as a file, and then its place in the set."""
    names = [f"sharded-{i:05d}-of-00003.aibit" for i in (1, 2, 3)]
    good = {name: (ROOT / "fixtures" / "container" / name).read_bytes() for name in names}
    first, _, third = names

    def code(level, **changed):
        for name, data in (good | {names[int(key[1]) - 1]: data for key, data in changed.items()}).items():
            (tmp_path / name).unlink(missing_ok=True)
            if data is not None:
                (tmp_path / name).write_bytes(data)
        try:
            sharded_reader.open(tmp_path / first, level).close()
        except FormatError as error:
            return error.code
        return None

    damaged = file_builder.flip(-1)
    assert code("full") is None
    assert code("full", _1=damaged(good[first]), _2=None) == "AIB-E602"
    assert code("structure", _1=damaged(good[first]), _2=None) == "AIB-E607"
    assert code("full", _2=damaged(good[third])) == "AIB-E602"  # of another place in the set, and damaged
    assert code("structure", _2=damaged(good[third])) == "AIB-E608"
    assert code("structure", _2=good[third], _3=None) == "AIB-E608"
