"""spec/aibit.ksy, compiled and run in Python and in JavaScript, says of good files what their twins say."""

import importlib.util
import json
import os
import shutil

import pytest

from tests.support import node, vectors
from tests.support.paths import ROOT

TOOLS = ROOT / "tools" / "conformance" / "kaitai"
IN_CI = bool(os.environ.get("CI"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the compiler, the description compiled by it, and what runs it in JavaScript.

    Without node, npm or a registry to be reached the tests are skipped, but not in CI.
    """
    node.require("node", "npm", what="the Kaitai description")
    folder = tmp_path_factory.mktemp("kaitai")
    for file in TOOLS.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    installed = run(folder, "npm", "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts")
    if installed.returncode and not IN_CI:
        pytest.skip(f"npm ci failed: the Kaitai description is not tried here\n{installed.stderr[-500:]}")
    assert installed.returncode == 0, installed.stderr
    compiled = run(folder, "node", "compile.js", ROOT / "spec" / "aibit.ksy", ".")
    assert compiled.returncode == 0, compiled.stderr
    assert compiled.stdout.split() == ["aibit.py", "Aibit.js"]
    return folder


def run(folder, *command):
    return node.run(*command, cwd=folder)


@pytest.fixture(scope="module")
def module(folder):
    spec = importlib.util.spec_from_file_location("aibit_from_kaitai", folder / "aibit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Aibit


def expected(path):
    """The twin, but for what a description of bytes cannot say."""
    content = vectors.twin(path)
    for tensor in content["tensors"]:
        tensor.pop("values", tensor.pop("unknown", None))
    for plane in content["planes"]:
        del plane["shape"]
    return content


def described(file):
    """What the compiled Python class says of a file."""
    header = file.header
    return {
        "header": {
            "signature": header.signature.hex(), "major": header.major, "minor": header.minor,
            "file_size": header.file_size, "front_matter_length": header.front_matter_length,
            "incompatible": header.incompatible, "compatible": header.compatible, "alignment": header.alignment,
            "section_count": header.section_count, "root": header.root.hex(),
        },
        "sections": [section(file, s) for s in file.sections],
        "metadata": {entry.key: value(entry) for entry in file.metadata},
        "schemes": [{"name": s.name.value, "version": s.record.version, "parameters": s.record.parameters}
                    for s in file.schemes],
        "documents": [{"name": d.name.value, "offset": d.record.offset, "length": d.record.length,
                       "data": d.data.hex()} for d in file.documents],
        "tensors": [tensor(t) for t in file.tensors],
        "planes": [{"tensor": p.record.tensor, "role": known(p.record.role), "dtype": known(p.record.dtype),
                    "offset": p.record.offset, "length": p.record.length, "data": p.data.hex()} for p in file.planes],
        "leaves": [f"{leaf:016x}" for leaf in file.leaves],
    }  # fmt: skip


def known(code):
    """The name of a code, or what readers show where there is none."""
    return getattr(code, "name", None) or (f"unknown_{code}" if code < 0x8000 else f"private_{code:04x}")


def section(file, s):
    record, name = s.record, getattr(s.record.kind, "name", "unknown")
    records = [{"algorithm": r.algorithm, "key": r.key.hex(), "signature": r.signature.hex()}
               for r in s.signatures or () if r.algorithm]  # fmt: skip
    more = {
        "strings": {"text": file.strings}, "signatures": {"records": records}, "front_signatures": {"records": records},
        "strong_leaves": {"digests": [leaf.hex() for leaf in s.strong_leaves or ()]}, "unknown": {"data": s.data.hex()},
    }  # fmt: skip
    numbers = {field: getattr(record, field) for field in ("flags", "count", "offset", "length")}
    return {"name": name, "kind": int(record.kind), **numbers, **more.get(name, {})}


def value(entry):
    kind, items = entry.record.type.name, entry.body.values
    if kind in ("string", "bytes"):
        items = [item.value for item in items]
    items = [{"bool": bool, "bytes": bytes.hex}.get(kind, lambda item: item)(item) for item in items]
    is_array = bool(entry.record.is_array)
    return {"type": kind, "is_array": is_array, "value": items if is_array else items[0]}


def tensor(t):
    record = t.record
    numbers = {field: getattr(record, field) for field in ("scheme", "flags", "target", "first_plane", "plane_count")}
    return {
        "name": t.name.value, "shape": record.shape[: record.rank], "dtype": known(record.dtype), **numbers,
        "alias_of": t.target.name.value if t.is_alias else None, "transposed": t.is_transposed,
        **({"parameters": record.parameters} if any(record.parameters) else {}),
    }  # fmt: skip


@pytest.mark.parametrize("path", vectors.GOOD, ids=lambda path: path.stem)
def test_python(module, path):
    assert json.dumps(described(module.from_file(str(path)))) == json.dumps(expected(path))


def test_javascript(folder):
    result = run(folder, "node", "read.js", "Aibit.js", *vectors.GOOD)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(vectors.GOOD)
    for path, line in zip(vectors.GOOD, lines, strict=True):
        wanted = expected(path)
        for entry in wanted["metadata"].values():
            if entry["type"] == "int":
                entry["value"] = as_doubles(entry["value"])
        assert json.loads(line) == wanted, path.stem


def as_doubles(value):
    """Integers as JavaScript writes them: as strings where a double may not hold them."""
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    return value if abs(value) < 1 << 53 else str(value)


def test_another_version_or_signature_is_refused(module):
    import kaitaistruct

    data = vectors.GOOD[0].read_bytes()
    for offset, byte in ((0, b"\x88"), (10, b"\x02"), (32, b"\x01"), (14, b"\x01")):
        with pytest.raises(kaitaistruct.ValidationFailedError):
            module.from_bytes(data[:offset] + byte + data[offset + 1 :])
