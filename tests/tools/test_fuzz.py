"""The same verdict however the bytes are held, whatever was done to them; and some seconds of a fuzzer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import random
import resource
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.errors import FormatError
from aibit_format.file.reader import File
from aibit_format.io import lease
from aibit_format.schemes import make
from tests.support.paths import ROOT
from tests.support.random_models import calm, models
from tests.support.random_models import write as bytes_of
from tools import fuzz
from tools.fixtures import file_builder
from tools.fuzz import bundle, records, safetensors_bytes, verdict
from tools.fuzz.verdict import check_comes_out_the_same

FIXTURES = sorted((ROOT / "fixtures" / "container").glob("*.aibit"))
GOOD = file_builder.good()
MUTANTS = 300
SECONDS = 30  # against hangs, not for speed


# Every accepted file comes out as it went in


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_fixture_comes_out_the_same(path):
    assert check_comes_out_the_same(path.read_bytes())


@settings(calm, max_examples=40)
@given(models())
def test_random_models_come_out_the_same(model):
    assert check_comes_out_the_same(bytes_of(*model))


@settings(calm, max_examples=80)
@given(models(), st.data())
def test_a_byte_changed_anywhere_is_found(model, data):
    good = bytes_of(*model)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError) as caught:
        File(bytes(bad), "full")
    # Every byte is under a digest, is one, or is padding, which is zero.
    assert caught.value.code.startswith("AIB-E")


# The same verdict mapped, copied, from bytes, through fsspec, and by a Python that skips assertions


def mutants():
    """Files with random changes, some of them under right digests; the same ones each time."""
    rng = random.Random(5)
    seeds = [path.read_bytes() for path in FIXTURES]
    yield from seeds
    for i in range(MUTANTS):
        seed = rng.choice(seeds)
        data, front = bytearray(seed), file_builder.front_end(seed)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(data) if i % 2 else front)
            data[at : at + 1] = rng.choice((bytes([data[at] ^ 1 << rng.randrange(8)]), rng.randbytes(1), b"\xff"))
        if i % 5 == 4:
            del data[rng.randrange(len(data)) :]
        if i % 3:
            with contextlib.suppress(ValueError, IndexError, OverflowError):  # no records to seal any more
                data = file_builder.reseal(data, leaves=i % 3 == 2)
        yield bytes(data)


def print_verdicts():
    sys.stdout.write(json.dumps([verdict.verdict(data) for data in mutants()]))


@pytest.fixture(scope="module")
def expected():
    started = time.monotonic()
    found = [verdict.verdict(data) for data in mutants()]
    assert time.monotonic() - started < SECONDS * len(found) / 10
    assert len({text.split()[0] for text in found if text.startswith("AIB-")}) > 15  # many ways to be refused
    return found


@pytest.mark.parametrize("way", ["mapped", "copied", "fsspec", "file"])
def test_the_verdict_does_not_depend_on_how_the_bytes_are_held(way, expected, tmp_path, monkeypatch):
    path = tmp_path / "m.aibit"
    url = {"fsspec": "memory://fuzz/m.aibit", "file": f"file://{path}"}.get(way, str(path))
    if way == "copied":
        monkeypatch.setattr(lease, "_take_lease", lambda storage: None)
    differing = {}
    for i, data in enumerate(mutants()):
        if way == "fsspec":
            fsspec.filesystem("memory").pipe("/fuzz/m.aibit", data)
        else:
            path.write_bytes(data)
        if (found := verdict.verdict(url)) != expected[i]:
            differing[i] = found, expected[i]
    assert differing == {}


def test_the_verdict_does_not_depend_on_assertions(expected):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = "from tests.tools import test_fuzz; test_fuzz.print_verdicts()"
    result = subprocess.run(
        [sys.executable, "-O", "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout) == expected


def test_no_input_takes_much_memory_or_time():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in mutants():
        started = time.monotonic()
        verdict.verdict(data)
        assert time.monotonic() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 64 << 20


def test_what_is_kept_of_the_schemes_of_all_files_is_bounded():
    for threshold in range(1, 1000):  # as many files as like may come, each with parameters of its own
        make("int8-outlier", 1, (threshold,))
    assert make.cache_info().currsize <= 256


# A fuzzer for some inputs; tools/fuzz/FUZZING.md tells of its hours

FUZZED = {  # inputs: a number of them, and not of seconds, is the same on every machine
    "reader": 9000, "signatures": 2000, "shards": 2000, "safetensors": 4000, "gguf": 2000, "pickle": 4000,
    "archive": 4000, "checkpoint": 6000, "quantized": 8000, "makers": 4000, "calibrations": 20_000,
    "graphs": 4000,
}  # fmt: skip


def flip(data, size):
    """What libFuzzer would do."""
    at = random.Random(len(data)).randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_target_of_the_fuzzer_is_run():
    assert FUZZED.keys() == fuzz.TARGETS.keys()


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="Atheris has no wheel for this Python")
@pytest.mark.parametrize("target", FUZZED)
def test_the_fuzzer_finds_nothing_in_some_inputs(target, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "tools.fuzz", "--target", target, "--inputs", str(FUZZED[target]), "--seed", "1",
        "--findings", str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    found = [path.name for path in tmp_path.iterdir()]
    assert result.returncode == 0, (found, result.stderr[-3000:])
    units = next(line for line in result.stderr.splitlines() if "number_of_executed_units" in line)
    assert int(units.split()[-1]) > 20, units


SHAPES = (lambda shape: (), lambda shape: (math.prod(shape),), lambda shape: shape[1:], lambda shape: shape[:-1],
          lambda shape: (1, *shape), lambda shape: (*shape, 1), lambda shape: shape[::-1],
          lambda shape: (0, *shape[1:]), lambda shape: (*shape[:-1], 0),
          lambda shape: (*shape[:-1], *(n + 1 for n in shape[-1:])))  # fmt: skip


@pytest.mark.parametrize("target", ["checkpoint", "quantized", "makers"])
def test_tensors_of_any_shape_and_dtype_are_read_or_refused(target):
    """What a fuzzer comes to sooner or later: each tensor of each checkpoint, with another shape or another dtype."""
    reads, refused = fuzz.make(target), 0
    for seed in reads.seeds().values():
        files = bundle.unpack(seed)
        for name in [name for name in files if name.endswith(".safetensors")]:
            for changed in other_tensors(files[name]):
                with np.errstate(all="ignore"):
                    refused += reads.run(bundle.pack({**files, name: changed})).startswith("AIB-")
    assert refused > 50


def other_tensors(data):
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__", None)
    tensors = {
        name: (each["dtype"], tuple(each["shape"]), data[end:][slice(*each["data_offsets"])])
        for name, each in header.items()
    }
    for name, (dtype, shape, content) in tensors.items():
        ways = {(dtype, tuple(other(shape))) for other in SHAPES} | {(other, shape) for other in safetensors_bytes.BITS}
        for dtype_now, now in sorted(ways - {(dtype, shape)}):
            length = math.prod(now) * safetensors_bytes.BITS[dtype_now] // 8
            other = dtype_now, now, content[:length].ljust(length, b"\1")
            yield safetensors_bytes.pack({**tensors, name: other}, metadata)


def test_the_mutator_keeps_digests_right():
    mutator, opened = records.Mutator(flip), 0
    for seed in range(200):
        data = mutator(GOOD, 1 << 15, seed)
        with np.errstate(all="ignore"):
            opened += verdict.verdict(data) not in {"AIB-E111", "AIB-E602"}
    assert opened > 100
