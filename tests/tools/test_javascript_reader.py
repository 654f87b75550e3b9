"""The reader in JavaScript agrees with the corpus in all of it, and with the package in what the corpus has not."""

import json
import os
import random
import re
import struct
import zlib

import numpy as np
import pytest
import xxhash

from aibit_format.container import documents, layout, validate
from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.file import reader, writer
from aibit_format.schemes import BUILTIN, NUMBERED, make
from aibit_format.schemes.block_scaled import BlockScaled
from aibit_format.schemes.int_group import BITS
from aibit_format.schemes.packing import unpack_plane
from tests.support import node, vectors
from tests.support.paths import ROOT
from tests.support.random_planes import random_planes
from tools.conformance import run

SOURCE = ROOT / "tools" / "conformance" / "javascript"
CODE = re.compile(r"AIB-E\d{3}")


@pytest.fixture(scope="module", autouse=True)
def needs_node():
    node.require("node", what="the reader in JavaScript")


def program():
    return [node.found("node"), str(SOURCE / "cli.js")]


def codes(paths):
    """The code of each file, or None."""
    result = node.run(*program(), *paths)
    assert result.returncode in (0, 3), result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(paths)
    return [found[0] if (found := CODE.match(line)) else None for line in lines]


def codes_of(files, folder):
    """The code of each of some bytes, or None."""
    paths = []
    for i, data in enumerate(files):
        paths.append(folder / f"{i}.aibit")
        paths[-1].write_bytes(data)
    return codes(paths)


def asked(folder, text, given=None):
    """What some JavaScript prints as JSON, with the reader's modules beside it and `given` to read."""
    script = folder / "script.mjs"
    script.write_text(re.sub(r"from '\./", f"from '{SOURCE.as_uri()}/", text))
    (folder / "given.json").write_text(json.dumps(given))
    result = node.run("node", script, folder / "given.json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_it_agrees_with_the_whole_corpus():
    judgements = run.run(program(), lines=True)
    assert len(judgements) == len(vectors.GOOD) + len(vectors.INDEX)
    assert [(j.case.name, j.reason) for j in judgements if j.outcome not in run.RIGHT] == []


def test_one_file_is_judged_as_many_are(tmp_path):
    hello = ROOT / "fixtures" / "container" / "hello.aibit"
    broken = tmp_path / "m.aibit"
    broken.write_bytes(hello.read_bytes()[:-1])
    for path, status, out in ((hello, 0, '{"header": {'), (broken, 3, "AIB-E108: ")):
        result = node.run(*program(), path)
        assert (result.returncode, result.stderr) == (status, "")
        assert result.stdout.startswith(out) and result.stdout.count("\n") == 1
    listed = node.run(*program(), hello, "--list")
    assert listed.stdout == "linear.weight\tint8\tbf16\t[2, 4]\nnorm.weight\tf32\tf32\t[4]\n"
    assert node.run(*program()).returncode == 2


def test_badly_shaped_signatures_are_refused(tmp_path):
    files = [data for _, data in vectors.badly_signed()]
    assert codes_of(files, tmp_path) == ["AIB-E604"] * len(files)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path, tmp_path / "none", tmp_path / "pipe"]
    assert codes(paths) == ["AIB-E801", "AIB-E803", "AIB-E801"]


def test_every_leaf_is_looked_at(tmp_path):
    good, places = vectors.of_several_leaves()
    files, wanted = [good], [None]
    for code, offsets in places.items():
        for offset in offsets:
            files.append(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
            wanted.append(code)
    assert codes_of(files, tmp_path) == wanted


@pytest.mark.parametrize("name", vectors.JSON_NAMES)
def test_json_documents_get_the_verdict_of_the_package(name, tmp_path):
    contents, files = zip(*vectors.json_documents(name), strict=True)
    found = codes_of(files, tmp_path)
    wanted = [vectors.reference_code_of(data) for data in files]
    rows = zip(contents, found, wanted, strict=True)
    assert [(content[:60], a, b) for content, a, b in rows if a != b] == []


def test_damage_gets_the_verdict_of_the_package(tmp_path):
    """Whether a file is good never differs. Which of several broken rules is named may, so codes need not agree."""
    rng, count = random.Random(2), 1500
    good = [data for data in (path.read_bytes() for path in vectors.GOOD) if len(data) < 20_000]
    files = [vectors.damaged(rng, rng.choice(good)) for _ in range(count)]
    pairs = [*zip(codes_of(files, tmp_path), map(vectors.reference_code_of, files), strict=True)]
    assert [pair for pair in pairs if (pair[0] is None) != (pair[1] is None)] == []
    assert sum(a == b for a, b in pairs) > 0.98 * count
    assert 0.5 * count < sum(a is not None for a, _ in pairs) < count


def test_its_digests_are_those_of_xxhash(tmp_path):
    sizes = [*range(1100), 2047, 2048, 2049, 5000, (1 << 20) - 1, 1 << 20]
    found = asked(
        tmp_path,
        """
        import fs from 'node:fs';
        import { xxh3_64, xxh3_128 } from './xxh3.js';
        import { hex } from './numbers.js';
        const sizes = JSON.parse(fs.readFileSync(process.argv[2]));
        const data = Uint8Array.from({ length: (1 << 20) + 3 }, (_, i) => (i % 65521) * (i % 65521) * 31 + i / 7);
        const of = (start, size) => {
          const bytes = data.subarray(start, start + size);
          return [xxh3_64(bytes).toString(16), size > 240 ? hex(xxh3_128(bytes)) : ''];
        };
        console.log(JSON.stringify(sizes.map((size) => [...of(0, size), ...of(3, size)])));
        """,
        sizes,
    )
    data = bytes((i % 65521) ** 2 * 31 + i // 7 & 0xFF for i in range((1 << 20) + 3))
    for size, digests in zip(sizes, found, strict=True):
        wanted = []
        for start in (0, 3):  # aligned, and not
            piece = data[start : start + size]
            wanted += [f"{xxhash.xxh3_64_intdigest(piece):x}", xxhash.xxh3_128_hexdigest(piece) if size > 240 else ""]
        assert digests == wanted, size


def test_planes_follow_from_scheme_shape_and_dtype_as_in_the_package(tmp_path):
    rows = [*vectors.planes_by_scheme(20_000)]
    found = asked(
        tmp_path,
        """
        import fs from 'node:fs';
        import { schemeOf } from './schemes.js';
        const rows = JSON.parse(fs.readFileSync(process.argv[2]));
        console.log(JSON.stringify(rows.map(([name, version, parameters, shape, dtype]) => {
          const scheme = schemeOf(name, version);
          const fits = scheme.parameters(parameters.slice(0, 6)) && scheme.dtypes.includes(dtype);
          return fits && scheme.takes(parameters, shape) ? scheme.planes(parameters, shape, dtype) : null;
        })));
        """,
        [row[:5] for row in rows],
    )
    for row, planes in zip(rows, found, strict=True):
        assert planes == (None if row[5] is None else [[*spec] for spec in row[5]]), row[:5]
    assert sum(row[5] is not None for row in rows) > 1000


def test_plain_values_are_those_of_the_package(tmp_path):
    """Every code of up to 16 bits; of others many, and those whose float32 is a tie or nearly one."""
    rng = np.random.default_rng(0)
    edges = [n + d for n in (0, 2**24, 2**25, 2**31, 2**53, 2**54, 2**62, 2**63) for d in range(-3, 4)]
    edges += [(2**24 + 1 << k) + d for k in range(1, 39) for d in (-1, 0, 1)]
    plain = {}
    for name, dtype in DTYPES.items():
        if dtype.is_packed:  # rows of three, with every code
            codes = np.arange(3 << dtype.bits, dtype=np.uint8).reshape(-1, 3) & ((1 << dtype.bits) - 1)
            plain[name] = make(name).encode(codes, name)["values"].tobytes()
            continue
        width = dtype.bits // 8
        codes = np.arange(1 << 8 * width, dtype=f"u{width}") if width < 3 else rng.integers(0, 256, 4000 * width, "u1")
        integers = b"".join((n % (1 << 64)).to_bytes(8, "little") for n in edges) if width == 8 else b""
        plain[name] = (codes[:2] if name == "bool" else codes).tobytes() + integers
    found = asked(
        tmp_path,
        """
        import fs from 'node:fs';
        import { elements } from './numbers.js';
        import { schemeOf } from './schemes.js';
        import { toJson } from './twin.js';
        const rows = Object.entries(JSON.parse(fs.readFileSync(process.argv[2])));
        console.log(toJson(rows.map(([name, hex]) => {
          const bytes = Uint8Array.from(Buffer.from(hex, 'hex'));
          return schemeOf(name, 1).decode([], [], { values: elements(name, bytes, [3]) });
        })));
        """,
        {name: data.hex() for name, data in plain.items()},
    )
    for (name, data), values in zip(plain.items(), found, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            stored = np.frombuffer(data, DTYPES[name].numpy)
            if DTYPES[name].is_packed:
                rows = 1 << DTYPES[name].bits
                stored = unpack_plane(stored.reshape(rows, -1), name, (rows, 3)).reshape(-1)
            wanted = to_float32(stored, name)
        numbers = ~np.isnan(wanted)
        same = np.array(values, np.float32).view(np.uint32) == wanted.view(np.uint32)
        assert same[numbers].all(), name
        assert np.isnan(np.array(values, np.float64)[~numbers]).all(), name


VARIANTS = {
    "int8-absmax": [(0,), (48,), (0xFFFFFFFF,)], "int8-zp": [(0,), (16,), (0xFFFFFFFF,)],
    "fp8-e4m3": [(0,), (0xFFFFFFFF,)], "cluster": [(bits,) for bits in range(2, 9)], "int8-outlier": [(1, 3)],
    "int4-group": [(32, 0, 0), (64, 1, 0), (16, 0, 1), (0, 0, 0), (0, 1, 0)],
    "nf4": [(64, 0), (32, 1)], "fp4": [(64, 0), (32, 1)], "nf4-cpu": [(64, 0), (64, 1)],
    "fp8-block": [(0, 0, 12), (1, 0, 11), (16, 32, 10), (5, 7, 16)],
    "int-group": [(bits, 32, 10 + i % 3, i % 4, i % 2) for i, bits in enumerate(BITS)],
    "mxfp8": [(14,), (15,)], "nvfp4": [(0,), (1,)], "ternary": [(12, 0), (11, 1), (10, 1)],
    "cluster-group": [(bits, (64, 0, 7)[bits % 3]) for bits in range(2, 9)], "int8-static": [(0,), (1,)],
}  # fmt: skip


def planes_at_random(rng, scheme, shape):
    """Planes that keep the rules of their scheme, with every code there is."""
    if isinstance(scheme, BlockScaled):
        found = random_planes(scheme, shape)
        return found | {role: np.full_like(plane, 1.5) for role, plane in found.items() if role == "global_scale"}
    planes = {}
    for spec in scheme.planes(shape, "f32"):
        storage = DTYPES[spec.dtype].numpy
        if storage.kind == "f":
            planes[spec.role] = np.abs(rng.standard_normal(spec.shape)).astype(storage)
        else:
            planes[spec.role] = rng.integers(0, 256, spec.nbytes, "u1").view(storage).reshape(spec.shape)
    name, p = scheme.name, scheme.parameters
    if name == "fp8-e4m3":
        planes["codes"][planes["codes"] & 0x7F == 0x7F] = 0x7E
    if "zero_point" in planes and name == "int4-group":
        planes["zero_point"] %= 17
    if "group_index" in planes:
        planes["group_index"][:] = rng.integers(0, planes["scale"].shape[-1], shape[-1])
    if name.startswith("cluster"):
        planes["codebook"] = np.sort(rng.standard_normal(2 ** p[0])).astype(np.float32)
    if name in ("cluster", "cluster-group", "int4-group"):
        width = 4 if name == "int4-group" else p[0]
        planes["codes"][..., -1] &= 0xFF & -1 << -shape[-1] * width % 8
    if name == "int8-outlier":
        planes["outlier_index"][:] = rows = np.sort(rng.permutation(shape[0])[: p[1]])
        planes["row_absmax"][rows], planes["codes"][rows] = 0, 0
    if name == "nf4-cpu":
        planes = scheme.encode(rng.standard_normal(shape).astype(np.float32), "f32")
    if name.startswith("gguf:"):
        blocks = planes["blocks"].reshape(-1, planes["blocks"].shape[-1] // (shape[-1] // 256))
        for row in blocks:  # d, m and dmin must be finite, wherever they lie
            while any(True for _ in scheme.bad_codes({"blocks": row[None]}, (1, 256))):
                row[:] = rng.integers(0, 256, row.size, "u1")
    return planes


def test_values_of_every_scheme_are_those_of_the_package(tmp_path):
    rng, tensors = np.random.default_rng(0), {}
    for name in sorted(set(BUILTIN) - set(DTYPES)):
        for parameters in VARIANTS.get(name, [()]):
            scheme = make(name, 1, (*parameters, *[0] * (6 - len(parameters))))
            shape = (64, 512) if name.startswith("gguf:") or name == "nf4-cpu" else (33, 131)
            tensor = writer.Tensor(f"{name}/{parameters}".replace(" ", ""), shape, "f32", scheme)
            tensors[tensor] = planes_at_random(rng, scheme, shape)
    path = tmp_path / "m.aibit"
    writer.write(path, tensors, {}, {})
    result = node.run(*program(), path)
    assert result.returncode == 0, result.stdout[:500]
    with reader.open(path, verify="full") as file:
        found = {tensor["name"]: tensor["values"] for tensor in json.loads(result.stdout)["tensors"]}
        for name, values in found.items():
            wanted = file.dequantize(name).reshape(-1).view(np.uint32)
            assert np.array_equal(np.array(values, np.float32).view(np.uint32), wanted), name


def test_its_tables_are_those_of_the_package(tmp_path):
    """A key, a scheme or a dtype that is new in the package is wanted here too."""
    found = asked(
        tmp_path,
        """
        import { DTYPES } from './numbers.js';
        import { FORBIDDEN, FORBIDDEN_IN } from './json.js';
        import { HEADER, SECTION, TABLES } from './tables.js';
        import { NESTED } from './fourbit.js';
        import { SCHEME_NAMES } from './schemes.js';
        import { ROLES } from './checks.js';
        import { TYPE_OF } from './contents.js';
        const records = { header: HEADER, section: SECTION, ...TABLES };
        console.log(JSON.stringify({
          dtypes: [...DTYPES.values()].map(({ code, name, bits }) => [code, name, bits]),
          schemes: SCHEME_NAMES, roles: [...ROLES], nested: NESTED,
          keys: [...TYPE_OF].map(([key, { type, isArray }]) => [key, type + (isArray ? 's' : '')]),
          forbidden: FORBIDDEN, inDocuments: [...FORBIDDEN_IN],
          sizes: Object.entries(records).map(([name, { size }]) => [name, size]),
        }));
        """,
    )
    assert found["dtypes"] == [[d.code, d.name, d.bits] for d in DTYPES.values()]
    versions = [(name, make(name).version) for name in BUILTIN] + list(NUMBERED)
    assert set(found["schemes"]) == {f"{name} {version}" for name, version in versions}
    assert dict(found["roles"]) == layout.ROLE_NAMES
    assert dict(found["keys"]) == validate.KNOWN_KEYS
    assert set(found["forbidden"]) == set(documents.FORBIDDEN_KEYS)
    for name, size in found["sizes"]:
        assert size == layout.RECORDS[name.removesuffix("s")].sizeof(), name
    checksum = zlib.crc32(struct.pack("<256f", *found["nested"]))
    text = (ROOT / "spec" / "schemes" / "fourbit.md").read_text("utf-8")
    assert f"CRC-32 of these 256 values, little-endian: 0x{checksum:08X};" in text


def test_it_is_small_and_needs_no_package():
    """Only cli.js needs node: browsers import the others."""
    for path in SOURCE.glob("*.js"):
        text = path.read_text("utf-8")
        assert text.count("\n") < 300, path.name
        assert max(map(len, text.splitlines())) <= 120, path.name
        imported = set(re.findall(r"from '([^']+)'", text))
        allowed = {"node:fs", "node:process"} if path.name == "cli.js" else set()
        assert {name for name in imported if not name.startswith("./")} <= allowed, path.name
        assert "import(" not in text and "require(" not in text, path.name
    package = json.loads((SOURCE / "package.json").read_text())
    assert package["type"] == "module" and not package.keys() & {"dependencies", "devDependencies", "scripts"}
