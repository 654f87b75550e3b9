"""The specification says what the code does, and the fixtures are what the specification says."""

import json
import re
import struct
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from aibit_format.errors import FormatError
from aibit_format.file import reader, writer
from aibit_format.schemes import BUILTIN, make
from tests.support.paths import ROOT
from tools.fixtures import (
    make_bad,
    make_fixtures,
)
from tools.spec import make_spec

RULES = tomllib.loads((ROOT / "spec" / "rules.toml").read_text("utf-8"))
FILE_RULES = {rule["id"]: rule for code in RULES["code"] for rule in code.get("rule", ())}
DUTIES = {duty["id"]: duty for duty in RULES["duty"]}
NAMES = sorted(make_fixtures.FIXTURES)
TYPES = {"int": int, "float": float, "bool": bool, "string": str, "bytes": str}


def fixture(name):
    folder = ROOT / "fixtures" / "container"
    return (folder / f"{name}.aibit").read_bytes(), json.loads((folder / f"{name}.json").read_text("utf-8"))


def test_specification_is_up_to_date():
    assert sorted(str(path.relative_to(ROOT)) for path in make_spec.stale()) == [], "run python -m tools.spec.make_spec"


def test_everything_generated_has_a_place():
    text = "".join(path.read_text("utf-8") for path in make_spec.sources())
    assert set(re.findall(r"<!-- generated: (.+?) -->", text)) == set(make_spec.GENERATED)
    assert text.count("<!-- generated:") == text.count("<!-- end -->")


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "spec").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_sections_referred_to_exist():
    text = (ROOT / "spec" / "aibit-1.md").read_text("utf-8")
    there = re.findall(r"^## (\d+)\.", text, re.MULTILINE)
    assert there == [str(n) for n in range(1, len(there) + 1)]
    assert set(re.findall(r"[Ss]ection (\d+)", text)) <= {*there}


def test_codes_of_the_source_and_of_the_rules_are_the_same():
    source = "".join(path.read_text("utf-8") for path in (ROOT / "aibit_format").rglob("*.py"))
    raised = set(re.findall(r"AIB-E\d{3}\b", source))
    listed = {code["code"] for code in RULES["code"]}
    assert sorted(raised - listed) == [], "raised, and not in spec/rules.toml"
    assert sorted(listed - raised) == [], "in spec/rules.toml, and never raised"


def test_rules_are_complete_and_in_order():
    for group in (True, False):
        codes = [code["code"] for code in RULES["code"] if ("rule" in code) == group]
        assert codes == sorted(set(codes))
    for code in RULES["code"]:
        assert set(code) in ({"code", "title", "means", "cure"}, {"code", "title", "means", "cure", "level", "rule"})
        assert code.get("level", "open") in ("open", "full", "demanded", "decode")
        numbers = [rule["id"] for rule in code.get("rule", ())]
        assert numbers == [f"{code['code'][4:]}.{i + 1}" for i in range(len(numbers))]
    for rule in FILE_RULES.values():
        assert set(rule) - {"reject"} in ({"id", "must", "bad"}, {"id", "must", "tests"}), rule["id"]
        assert len(re.findall(r"\bMUST\b", rule["must"])) == 1 and rule["must"].endswith("."), rule["id"]
        assert rule.get("bad") or rule.get("tests"), rule["id"]
    for duty in RULES["duty"]:
        assert set(duty) <= {"id", "text", "tests", "reject"}
        wanted = len(re.findall(r"\bMUST\b", duty["text"]))
        assert wanted < 2 and bool(wanted) == bool(duty.get("tests")), duty["id"]
    assert len(DUTIES) == len(RULES["duty"])


def test_every_test_that_is_named_is_there():
    for entry in [*FILE_RULES.values(), *RULES["duty"], *RULES["elsewhere"]]:
        for name in entry.get("tests", ()):
            file, function = name.split("::")
            assert f"\ndef {function}(" in (ROOT / "tests" / file).read_text("utf-8"), name


def test_every_class_of_hostile_input_has_a_rule_or_a_place():
    listed = {number for bad in make_bad.listed() for number in bad.classes}
    for entry in [*FILE_RULES.values(), *RULES["duty"], *RULES["elsewhere"]]:
        listed.update(entry.get("reject", ()))
    assert sorted(listed) == list(range(1, 85))


NUMBER = r"(?:E\d{3}\.\d+|[RW]\d+(?:\.\d+)?)"


def prose_of(path):
    """A page without what is generated."""
    return re.sub(r"<!-- generated: .*?<!-- end -->", "", path.read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "spec").rglob("*.md")))
def test_every_must_of_the_prose_has_its_number(page):
    """In brackets, after the word and before the next one or the end of the paragraph."""
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|#])", prose_of(ROOT / page)):
        for part in re.split(r"(?<!\*)\bMUST\b", paragraph)[1:]:
            assert re.search(rf"\[{NUMBER}(?:, {NUMBER})*\]", part), f"{page}: MUST{part}"


def test_the_prose_cites_every_rule():
    """Somewhere outside the lists that are generated; `E109.1 to E109.4` cites those between, too."""
    text = "".join(prose_of(path) for path in (ROOT / "spec").rglob("*.md"))
    cited = set(re.findall(NUMBER, text))
    for code, first, last in re.findall(r"(E\d{3})\.(\d+)\s+to\s+E\d{3}\.(\d+)", text):
        cited.update(f"{code}.{i}" for i in range(int(first), int(last) + 1))
    assert sorted(FILE_RULES.keys() - cited) == []


def test_every_number_that_the_prose_cites_is_there():
    for path in (ROOT / "spec").rglob("*.md"):
        text = path.read_text("utf-8")
        cited = set(re.findall(r"\bE\d{3}\.\d+", text)) | set(re.findall(r"\b[RW]\d{1,2}(?:\.\d)?\b", text))
        known = FILE_RULES.keys() | DUTIES.keys() | {number.split(".")[0] for number in DUTIES}
        assert sorted(cited - known) == [], path.name


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_scheme_has_a_page(name):
    text = (ROOT / "spec" / "schemes" / make_spec.page_of(name)).read_text("utf-8")
    assert re.search(rf"\b{re.escape(name)}\b", text)
    assert re.search("AIB-E50[23]", text) and "bits per weight" in text and "generated: example" in text


def test_fixtures_are_up_to_date():
    assert make_fixtures.stale() == [], "run python -m tools.fixtures.make_fixtures"


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
        out.commit(sign=lambda info: make_fixtures.completed(info, content, wanted))
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
    stated = (info.scheme.name, info.scheme.version, (*info.scheme.parameters, *(0,) * 6)[:6])
    assert stated == (scheme["name"], scheme["version"], tuple(scheme["parameters"]))
    if "unknown" in tensor:
        with pytest.raises(FormatError, match=tensor["unknown"]):
            file.dequantize(tensor["name"])
    else:
        made = make(scheme["name"], scheme["version"], tuple(scheme["parameters"]))
        assert info.scheme == made.for_tensor(tensor.get("parameters", (0, 0)))
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
    plain = [name for name in BUILTIN if BUILTIN[name].endswith(":Plain")]
    found = [tensor["dtype"] for name in ("dtypes", "packed-dtypes") for tensor in fixture(name)[1]["tensors"]]
    assert list(dict.fromkeys(found)) == plain


def test_the_program_of_the_first_page_reads_a_tensor():
    page = (ROOT / "spec" / "aibit-1.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page.partition("\n## 1. ")[0], re.DOTALL)
    assert len([line for line in program.splitlines() if line and not line.startswith("import")]) <= 20
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = np.array([json.loads(line) for line in done.stdout.splitlines()])
    with reader.open(fixture("hello")[0]) as file:
        wanted = file.dequantize("linear.weight")
    np.testing.assert_allclose(found, wanted, rtol=2.0**-22)
    assert found.shape == wanted.shape


def test_the_dump_of_the_first_page_leaves_out_zeros_alone():
    """Its lines are those of the file, and what lies between them is zero."""
    data, _ = fixture("hello")
    page = (ROOT / "spec" / "aibit-1.md").read_text("utf-8").partition("\n## 1. ")[0]
    found = bytearray(len(data))
    for offset, line in re.findall(r"^([0-9a-f]{6})  ((?:[0-9a-f]{2} ){0,15}[0-9a-f]{2})(?=  |$)", page, re.MULTILINE):
        row = bytes.fromhex(line)
        found[int(offset, 16) : int(offset, 16) + len(row)] = row
    assert bytes(found) == data
