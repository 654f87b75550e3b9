"""The reader in C: built with sanitizers, it lists what the twins say and refuses what the rules refuse."""

import os
import random
import re
import shutil
import subprocess

import pytest
import xxhash

from aibit_format.container import layout, validate
from aibit_format.dtypes import BY_CODE, DTYPES
from aibit_format.schemes import BUILTIN
from tests.support import vectors
from tests.support.paths import ROOT

SOURCE = ROOT / "tools" / "conformance" / "c"
SANITIZED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# What it leaves to others: the same list as at the head of aibit.h.
NOT_CHECKED = {"AIB-E502", "AIB-E503", "AIB-E605", "AIB-E606", "AIB-E607", "AIB-E608", "AIB-E705", "AIB-E706",
    "AIB-E707",
}

DIGESTS = r"""
#include "xxh3.h"
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    uint8_t data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * i * 31 + i / 7);
    for (size_t n = 0; n <= sizeof data; n += n < 300 ? 1 : 47) {
        uint8_t *copy = malloc(n + 1), root[16] = {0}; /* of the very size, so that reading beyond it is seen */
        for (size_t i = 0; i < n; i++) copy[i] = data[i];
        printf("%016llx ", (unsigned long long)xxh3_64(copy, n));
        if (n > 240) xxh3_128(copy, n, root);
        for (int i = 0; i < 16; i++) printf("%02x", root[i]);
        printf("\n");
        free(copy);
    }
}
"""


@pytest.fixture(scope="module")
def compiler():
    found = shutil.which(os.environ.get("CC", "cc"))
    if not found and not os.environ.get("CI"):
        pytest.skip("no C compiler found: the reader in C is not tried here")
    return found or "cc"


def built(compiler, source, out):
    result = subprocess.run(
        [compiler, *STRICT, *SANITIZED, "-I", SOURCE, "-o", out, source], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def run(compiler, tmp_path_factory):
    """Runs the built program; anything but one of its own exits (a sanitizer's, a signal) is the test's failure."""
    program = built(compiler, SOURCE / "aibit_list.c", tmp_path_factory.mktemp("c") / "aibit_list")

    def call(verb, *paths):
        result = subprocess.run([program, verb, *paths], capture_output=True, text=True, timeout=120)
        assert result.returncode in (0, 2, 3), result.stderr
        return result

    return call


def codes(result, paths):
    """The code of each file, or None, from lines that begin with its path."""
    found = dict(line.split(": ", 2)[:2] for line in result.stderr.splitlines())
    assert found.keys() <= {str(path) for path in paths}
    return [found.get(str(path)) for path in paths]


@pytest.mark.parametrize("path", vectors.GOOD, ids=lambda path: path.stem)
def test_it_lists_what_the_twin_says(run, path):
    twin, lines = vectors.twin(path), []
    for document in twin["documents"]:
        lines.append(("document", document["name"], document["offset"], document["length"]))
    for key, entry in twin["metadata"].items():
        lines.append(("metadata", key, entry["type"], len(entry["value"]) if entry["is_array"] else ""))
    for tensor in twin["tensors"]:
        scheme, shape = twin["schemes"][tensor["scheme"]]["name"], ",".join(map(str, tensor["shape"]))
        state = "transposed" if tensor["transposed"] else ""
        lines.append(("tensor", tensor["name"], scheme, tensor["dtype"], shape, state, tensor["alias_of"] or ""))
        for plane in twin["planes"][tensor["first_plane"] :][: tensor["plane_count"]]:
            lines.append(("plane", plane["role"], plane["dtype"], plane["offset"], plane["length"]))
    result = run("list", path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["\t".join(map(str, line)) for line in lines]


def test_good_files_verify(run):
    result = run("verify", *vectors.GOOD)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_bad_file_gets_the_code_of_its_rule(run, tmp_path):
    paths, wanted, levels = zip(*vectors.bad(tmp_path), strict=True)
    found = codes(run("verify", *paths), paths)
    expected = [  # it decodes nothing
        None if code in NOT_CHECKED or level == "decode" else code for code, level in zip(wanted, levels, strict=True)
    ]
    assert [(p.stem, f, e) for p, f, e in zip(paths, found, expected, strict=True) if f != e] == []
    # Listing needs no bytes of documents and planes, and refuses what opening must.
    for path, code, level in zip(paths, codes(run("list", *paths), paths), levels, strict=True):
        assert (code is not None) == (level == "open"), path.stem


def test_every_leaf_is_looked_at(run, tmp_path):
    good, places = vectors.of_several_leaves()
    paths, wanted = [tmp_path / "good.aibit"], [None]
    paths[0].write_bytes(good)
    for code, offsets in places.items():
        for offset in offsets:
            paths.append(tmp_path / f"{offset}.aibit")
            paths[-1].write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
            wanted.append(code)
    assert codes(run("verify", *paths), paths) == wanted


def test_badly_shaped_signatures_are_refused(run, tmp_path):
    paths = []
    for name, data in vectors.badly_signed():
        paths.append(tmp_path / f"{name}.aibit")
        paths[-1].write_bytes(data)
    assert codes(run("list", *paths), paths) == ["AIB-E604"] * len(paths)


def test_what_is_no_file_is_refused(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path, tmp_path / "none", tmp_path / "pipe"]
    assert codes(run("verify", *paths), paths) == ["AIB-E801", "AIB-E803", "AIB-E801"]
    assert run("read", tmp_path).returncode == 2


def test_damage_gets_the_verdict_of_the_package(run, tmp_path):
    rng, paths, wanted = random.Random(1), [], []
    files = [data for data in (path.read_bytes() for path in vectors.GOOD) if len(data) < 20_000]
    for i in range(600):
        data = vectors.damaged(rng, rng.choice(files))
        paths.append(tmp_path / f"{i}.aibit")
        paths[-1].write_bytes(data)
        wanted.append(vectors.reference_code_of(data))
    found = codes(run("verify", *paths), paths)
    pairs = list(zip(found, wanted, strict=True))
    assert [pair for pair in pairs if (pair[0] is None) != (pair[1] is None) and pair[1] not in NOT_CHECKED] == []
    assert sum(a == b for a, b in pairs) > 0.8 * len(pairs)


def test_digests_of_every_length_are_those_of_xxhash(compiler, tmp_path):
    source = tmp_path / "digests.c"
    source.write_text(DIGESTS)
    lines = subprocess.check_output([built(compiler, source, tmp_path / "digests")], text=True).splitlines()
    data = bytes((i * i * 31 + i // 7) & 0xFF for i in range(5000))
    sizes = [*range(300), *range(300, 5001, 47)]
    assert len(lines) == len(sizes)
    for size, line in zip(sizes, lines, strict=True):
        root = xxhash.xxh3_128(data[:size]).hexdigest() if size > 240 else "0" * 32
        assert line == f"{xxhash.xxh3_64_intdigest(data[:size]):016x} {root}", size


def test_it_is_small():
    sizes = {path.name: path.read_text("utf-8").count("\n") for path in SOURCE.glob("*.[hc]")}
    assert len(sizes) == 6 and max(sizes.values()) < 520, sizes


def test_its_head_says_what_it_does_not_check():
    head = (SOURCE / "aibit.h").read_text("utf-8").split("Not checked", 1)[1].split("Whoever", 1)[0]
    assert set(re.findall(r"AIB-E\d+", head)) == NOT_CHECKED | {"AIB-E609"}


def test_its_tables_are_those_of_the_package():
    text = "".join(path.read_text("utf-8") for path in SOURCE.glob("*.h"))
    kinds = {"string": ("STRING", 0), "int": ("INT", 0), "float": ("FLOAT", 0),
             "strings": ("STRING", 1), "ints": ("INT", 1), "floats": ("FLOAT", 1)}  # fmt: skip
    keys = re.findall(r'\{"([a-z0-9_.]+)", AIBIT_(STRING|INT|FLOAT), (\d), \d\}', text)
    assert {key: (kind, int(is_array)) for key, kind, is_array in keys} == {
        key: kinds[kind] for key, kind in validate.KNOWN_KEYS.items()
    }
    schemes = set(re.findall(r'\{"([a-z0-9:_-]+)", AIBIT_[A-Z0-9]+, \d+, \d+\}', text))
    assert schemes | set(DTYPES) == set(BUILTIN)
    dtypes = {dtype.code: name for name, dtype in DTYPES.items()}
    for names in (dtypes, layout.ROLE_NAMES):
        words = [f'"{names[code]}"' if code in names else "NULL" for code in range(max(names) + 1)]
        assert re.search(r"\{\s*" + r",\s*".join(words) + r"\}", text), words
    bits = ", ".join(str(BY_CODE[code].bits if code in BY_CODE else 0) for code in range(max(dtypes) + 1))
    found = re.search(r"bits\[AIBIT_DTYPES\] = \{([^}]+)\}", text)
    assert found and re.sub(r"\s+", " ", found[1]) == bits and f"AIBIT_DTYPES = {max(dtypes) + 1} }}" in text
