"""The specification says what the code does, and the fixtures are what the specification says."""

import json
import re
import struct
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from aibit_format import reader, writer
from aibit_format.schemes import BUILTIN, make

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import make_fixtures  # noqa: E402
import make_spec  # noqa: E402
import test_hostile  # noqa: E402

RULES = tomllib.loads((ROOT / "spec" / "rules.toml").read_text("utf-8"))
NAMES = sorted(make_fixtures.FIXTURES)
TYPES = {"int": int, "float": float, "bool": bool, "string": str, "bytes": str}


def fixture(name):
    folder = ROOT / "fixtures" / "container"
    return (folder / f"{name}.aibit").read_bytes(), json.loads((folder / f"{name}.json").read_text("utf-8"))


def test_specification_is_up_to_date():
    assert sorted(str(path.relative_to(ROOT)) for path in make_spec.stale()) == [], "run tools/make_spec.py"


def test_everything_generated_has_a_place():
    text = "".join(path.read_text("utf-8") for path in (ROOT / "spec").rglob("*.md"))
    assert set(re.findall(r"<!-- generated: (.+?) -->", text)) == set(make_spec.GENERATED)
    assert text.count("<!-- generated:") == text.count("<!-- end -->")


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "spec").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_sections_referred_to_exist():
    text = (ROOT / "spec" / "aibit-1.md").read_text("utf-8")
    there = set(re.findall(r"^## (\d+)\.", text, re.MULTILINE))
    assert there == {str(n) for n in range(1, len(there) + 1)}
    assert set(re.findall(r"[Ss]ection (\d+)", text)) <= there


def test_codes_of_the_source_and_of_the_rules_are_the_same():
    source = "".join(path.read_text("utf-8") for path in (ROOT / "aibit_format").rglob("*.py"))
    raised = set(re.findall(r"AIB-E\d{3}\b", source))
    listed = {entry["code"] for table in ("rule", "error") for entry in RULES[table]}
    assert sorted(raised - listed) == [], "raised, and not in spec/rules.toml"
    assert sorted(listed - raised) == [], "in spec/rules.toml, and never raised"


def test_rules_are_complete_and_in_order():
    for table in (RULES["rule"], RULES["error"]):
        codes = [entry["code"] for entry in table]
        assert codes == sorted(set(codes))
    for rule in RULES["rule"]:
        assert set(rule) == {"code", "title", "must", "level", "reject"}
        assert " MUST " in rule["must"] and rule["must"].endswith("."), rule["code"]
        assert rule["level"] in ("open", "full", "demanded")
        assert rule["reject"] == sorted(set(rule["reject"])) and set(rule["reject"]) <= set(range(1, 85))
    for error in RULES["error"]:
        assert set(error) == {"code", "title", "means"}


def test_every_class_of_hostile_input_has_a_rule_or_a_place():
    turned_away = {number for rule in RULES["rule"] for number in rule["reject"]}
    elsewhere = [number for entry in RULES["elsewhere"] for number in entry["reject"]]
    assert turned_away.isdisjoint(elsewhere)
    assert sorted([*turned_away, *elsewhere]) == list(range(1, 85))
    text = (ROOT / "spec" / "aibit-1.md").read_text("utf-8")
    for name in re.findall(r"\b[RW]\d+\b", " ".join(entry["where"] for entry in RULES["elsewhere"]) + text):
        assert f"- **{name}** " in text, name


def test_the_rules_name_the_classes_of_the_files_that_break_them():
    rules = {rule["code"]: rule["reject"] for rule in RULES["rule"]}
    for name, _, code in test_hostile.STRUCTURE + test_hostile.FULL:
        assert int(name.split()[0]) in rules[code], (name, code)


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_scheme_has_a_page(name):
    text = (ROOT / "spec" / "schemes" / make_spec.page_of(name)).read_text("utf-8")
    assert re.search(rf"\b{re.escape(name)}\b", text)
    assert re.search("AIB-E50[23]", text) and "bits per weight" in text and "generated: example" in text


def test_fixtures_are_up_to_date():
    assert make_fixtures.stale() == [], "run tools/make_fixtures.py"


@pytest.mark.parametrize("name", NAMES)
def test_the_writer_writes_the_fixture(name, tmp_path):
    """The fixtures are put together in memory; streaming through threads must give the same bytes."""
    wanted, _ = fixture(name)
    content = make_fixtures.FIXTURES[name]()
    with writer.Writer(tmp_path / "out.aibit", make_fixtures.plan(content)) as out:
        for document, data in content.documents.items():
            out.write_document(document, data)
        for tensor, planes in content.tensors.items():
            if tensor.alias_of is None:
                out.write(tensor.name, planes)
        out.commit(sign=make_fixtures.sign if content.signed else None)
    assert (tmp_path / "out.aibit").read_bytes() == wanted


@pytest.mark.parametrize("name", NAMES)
def test_reading_gives_what_the_twin_says(name):
    data, twin = fixture(name)
    with reader.open(data, verify="full") as file:
        assert file.root == twin["header"]["root"]
        assert file.keys() == [tensor["name"] for tensor in twin["tensors"]]
        for tensor in twin["tensors"]:
            check_tensor(file, tensor, twin)
        assert {key: bytes(value).hex() for key, value in file.documents.items()} == {
            document["name"]: document["data"] for document in twin["documents"]
        }
        assert list(file.metadata) == list(twin["metadata"])
        for key, value in file.metadata.items():
            check_metadata(value, twin["metadata"][key])


def check_tensor(file, tensor, twin):
    info = file.info(tensor["name"])
    scheme = twin["schemes"][tensor["scheme"]]
    assert list(info.shape) == tensor["shape"]
    assert (info.dtype, info.alias_of, info.transposed) == (tensor["dtype"], tensor["alias_of"], tensor["transposed"])
    assert info.scheme == make(scheme["name"], scheme["version"], tuple(scheme["parameters"]))
    values = file.dequantize(tensor["name"])
    assert values.dtype == np.float32 and list(values.shape) == tensor["shape"]
    np.testing.assert_array_equal(values.reshape(-1), np.array(tensor["values"], np.float32))
    owner = twin["tensors"][tensor["target"]] if tensor["alias_of"] else tensor
    planes = twin["planes"][owner["first_plane"] : owner["first_plane"] + owner["plane_count"]]
    assert [plane["role"] for plane in planes] == list(file.planes(tensor["name"]))
    for plane, found in zip(planes, info.planes, strict=True):
        assert (plane["dtype"], plane["shape"]) == (found.dtype, list(found.shape))
        assert (plane["offset"], plane["length"]) == (found.offset, found.length)
        assert file.planes(tensor["name"])[plane["role"]].tobytes().hex() == plane["data"]


def check_metadata(value, wanted):
    if isinstance(value, np.ndarray):
        value = value.tolist()
    assert isinstance(value, list) == wanted["is_array"]
    items, expected = (value, wanted["value"]) if wanted["is_array"] else ([value], [wanted["value"]])
    items = [item.hex() if isinstance(item, bytes) else item for item in items]
    assert items == expected
    assert all(type(item) is TYPES[wanted["type"]] for item in items)


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_says_where_the_bytes_lie(name):
    """Offsets of the twin against the bytes themselves, by no code of the package."""
    data, twin = fixture(name)
    header = twin["header"]
    fields = ("signature", "major", "minor", "file_size", "front_matter_length", "incompatible", "compatible")
    found = struct.unpack_from("<10sHH2xQQQQII56x16s", data)
    assert found[0].hex() == header["signature"] and found[-1].hex() == header["root"]
    assert found[1:-1] == tuple(header[field] for field in (*fields[1:], "alignment", "section_count"))
    assert header["file_size"] == len(data)
    for i, section in enumerate(twin["sections"]):
        assert struct.unpack_from("<HHIQQ8x", data, 128 + 32 * i) == tuple(
            section[field] for field in ("kind", "flags", "count", "offset", "length")
        )
    pieces = twin["documents"] + twin["planes"]
    for piece in pieces:
        assert data[piece["offset"] : piece["offset"] + piece["length"]].hex() == piece["data"]
    used = np.zeros(len(data), bool)
    used[: 128 + header["front_matter_length"]] = True
    for piece in pieces:
        span = slice(piece["offset"], piece["offset"] + piece["length"])
        assert not used[span].any()
        used[span] = True
    assert not any(np.frombuffer(data, np.uint8)[~used])


@pytest.mark.parametrize("name", NAMES)
def test_the_annotated_dump_covers_every_byte(name):
    data, _ = fixture(name)
    assert b"".join(piece.data for piece in make_spec.pieces(data)) == data


def test_checking_tells_a_stale_page():
    page = (ROOT / "spec" / "aibit-1.md").read_text("utf-8")
    assert make_spec.rendered(page) == page
    assert make_spec.rendered(page.replace("| 1 | `values` |", "| 99 | `values` |")) == page


def test_all_plain_dtypes_are_in_the_fixture():
    _, twin = fixture("dtypes")
    plain = [name for name in BUILTIN if BUILTIN[name].endswith(":Plain")]
    assert [tensor["dtype"] for tensor in twin["tensors"]] == plain
