"""What the pages beside the specification claim: file(1)'s magic, what peers let through, links and codes."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import tomllib

import gguf
import numpy as np
import pytest
import safetensors.numpy

from aibit_format.container import layout, signatures
from tests.support.paths import ROOT
from tools import formats

PAGES = [
    "README.md", "docs/using.md", "docs/formats.md", "SECURITY.md", "spec/README.md", "spec/IMPLEMENTING.md",
    "spec/schemes/README.md", "spec/COMPATIBILITY.md", "spec/ERRATA.md", "spec/PERMISSIVE.md", "spec/media-type.md",
]  # fmt: skip
MAGIC = ROOT / "spec" / "aibit.magic"


def file(path, *options):
    done = subprocess.run(["file", "-b", "-m", MAGIC, *options, path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.skipif(not shutil.which("file"), reason="file(1) is not installed")
def test_file_knows_both_formats(fixtures, tmp_path):
    hello = fixtures / "container" / "hello.aibit"
    assert file(hello) == "aibit quantized model, version 1.0, 1296 bytes, alignment 64"
    assert (file(hello, "--mime-type"), file(hello, "--extension")) == ("application/vnd.aibit", "aibit")
    beside = tmp_path / "hello.aibit.sig"
    beside.write_bytes(signatures.detached([signatures.Signature(bytes(32), bytes(64))]))
    assert file(beside) == "aibit detached signatures, 1"
    assert (file(beside, "--mime-type"), file(beside, "--extension")) == ("application/vnd.aibit.signature", "sig")
    (tmp_path / "damaged").write_bytes(hello.read_bytes().replace(b"\r\n", b"\n", 1))
    assert "aibit" not in file(tmp_path / "damaged")


def test_the_pages_state_the_magic_numbers_of_the_format():
    text = (ROOT / "spec" / "media-type.md").read_text("utf-8")
    for magic in (layout.SIGNATURE, layout.DETACHED_MAGIC):
        assert f"`{magic.hex(' ').upper()}`" in text
        assert f"\t{repr(magic)[2:-1]}\t" in MAGIC.read_text("ascii")


def test_the_page_of_formats_is_what_the_registries_say():
    assert formats.PAGE.read_text("utf-8") == formats.page()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_codes_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    rules = (ROOT / "spec" / "rules.toml").read_text("utf-8")
    assert tomllib.loads(rules)
    for code in re.findall(r"\bE\d{3}\b", text):
        assert f'"AIB-{code}"' in rules, code


# What others let through: see spec/PERMISSIVE.md


def test_safetensors_takes_two_tensors_of_one_name():
    head = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    found = safetensors.numpy.load(struct.pack("<Q", len(head)) + head + b"\1\2")
    assert list(found) == ["a"] and found["a"].tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_gguf_takes_tensors_that_overlap_and_offsets_that_wrap(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for start, name in enumerate("ab"):
        writer.add_tensor(name, np.arange(16, dtype=np.float32) + 100 * (start + 1))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    good = path.read_bytes()
    at = good.rindex(struct.pack("<Q", 64))  # where the second tensor begins

    def second(offset):
        path.write_bytes(good[:at] + struct.pack("<Q", offset) + good[at + 8 :])
        return gguf.GGUFReader(path).tensors[1].data.tolist()

    assert second(64)[0] == 200
    assert second(0)[0] == 100  # the first one's bytes
    assert second((1 << 64) - 64)[0] not in (100, 200)  # bytes of the header, as weights


def test_python_takes_what_is_no_json():
    assert json.loads('{"a": NaN, "b": -Infinity, "b": 1}')["b"] == 1
