"""The compiled code under AddressSanitizer and UBSan: every function, with arrays and sizes that fit and that do not.

Run as a program, this is the process that is watched: ``python -m tests.native.test_sanitized MODULE SEED``.
"""

from __future__ import annotations

import ctypes
import datetime
import importlib.machinery
import importlib.util
import itertools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FLAGS = [
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1",
    "-ffp-contract=off", "-fPIC", "-shared",
]  # fmt: skip
ROUNDS = 50
MOST_BYTES = 1 << 22  # of an array; a longer one is replaced by an empty one, which is of the wrong size
HUGE = [2**31, 2**32, 2**61, 2**62, 2**63 - 17, 2**63 - 1]
REFUSED = (ValueError, OverflowError)


@dataclass(frozen=True)
class Array:
    """Stands for an array of ``size`` bytes, which the function fills if ``out``; ``zeros`` alone fit some."""

    size: int
    out: bool = False
    zeros: bool = False


@dataclass(frozen=True)
class Free:
    """Stands for a number that no array's size depends on, so that another one may do as well."""

    value: int


def calls(random: np.random.Generator, draw: Any, parallel: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield every function's name and its arguments, which fit; ``draw(kind)`` returns a size."""

    def out(size: int) -> Array:
        return Array(size, True)

    dtype = str(random.choice(["f16", "bf16", "f32"]))
    width = 4 if dtype == "f32" else 2
    rows, columns, features, block = draw("rows"), draw("columns"), draw("features"), draw("block")
    team = [int(random.integers(1, 4)), parallel]
    half_block, padded = block // 2, -(-columns // 16) * 16
    values, codes = Array(rows * columns * width), Array(rows * columns)
    yield "int8_rows", [dtype, values, rows, columns, out(rows * columns), out(rows * 4)]
    yield "finite", [dtype, Array(columns * width), columns]
    yield "four_bit_blocks", [
        dtype, Array(rows * block * width), rows, block, Array(15 * 4), Array(16), out(rows * half_block),
        out(rows * 4),
    ]  # fmt: skip
    yield from ggml_calls(random, draw, dtype, width)
    yield from gptq_calls(random, draw)
    for item in {width, 4}:
        yield "four_bit_values", [
            dtype, rows, block, Array(rows * half_block), Array(16 * 4), Array(rows * 4), item,
            out(rows * block * item), *team,
        ]  # fmt: skip
    outer = Array(-(-columns // 256) * 4)
    yield "nested_scales", [columns, Array(columns), Array(256 * 4), outer, 0.5, out(columns * 4)]
    blocks, each = draw("blocks"), 32 if block == 32 else -(-block // 64) * 64
    wide = blocks * each
    yield "four_bit_product", [
        rows, wide, features, Array(rows * wide * 4), Array(features * wide // 2), Array(16 * 4),
        Array(features * blocks * 4), each, out(rows * features * 4), *team,
    ]  # fmt: skip
    first, step = int(random.integers(0, max(1, min(rows, 4)))), int(random.choice([1, 2, 3, 2**62, 2**63 - 1]))
    if rows:
        count = 1 + (rows - 1 - first) // step
        yield "error_sums", [
            dtype, values, rows, columns, Free(first), Free(step), count, Array(count * columns * 4),
        ]  # fmt: skip
    yield "int8_error_sums", [dtype, values, rows, columns, Free(step), codes, Array(rows * 4)]
    weight, scales, bias = Array(features * columns), Array(features * 4), Array(features * 4)
    added, result = (bias, None)[int(random.integers(2))], out(rows * features * width)
    yield "int8_product", [
        dtype, rows, columns, features, Array(rows * padded * 2), Array(rows * 4), weight, scales, 0.01, added,
        result, *team,
    ]  # fmt: skip
    linear = [dtype, rows, columns, features, values, weight, scales, 0.01, added, result, *team]
    yield "int8_linear", [*linear, float(random.choice([6.0, 1e-3, np.inf, np.nan]))]
    yield "float_linear", linear
    yield from packed_calls(random, draw, dtype, width, team)
    yield from operator_calls(random, draw, dtype, width, team)
    leaf = draw("leaf")
    yield "leaf_digests", [Array(rows * leaf), rows, leaf, out(rows * 8)]


def ggml_calls(random: np.random.Generator, draw: Any, dtype: str, width: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield searches for the scales of blocks with and without minima, and with a codebook."""
    count, periods, starts, divisors = draw("rows"), *(int(random.integers(1, 4)) for _ in range(3))
    groups, size = ((1, 32), (8, 32), (16, 16))[int(random.integers(3))]
    minima = int(random.integers(3))
    codes, factors = ((0, 15) if minima else (-8, 7)), (0, 63) if minima else (-32, 31)
    numbers = [*codes, *factors, minima, 3, *(int(random.integers(3)) for _ in range(3))]
    book = None if minima or random.random() < 0.5 else Array(31 * 4)
    yield "ggml_blocks", [
        dtype, Array(count * groups * size * width), count, Array(periods * groups * size * 4), periods,
        Array(starts * 8), starts, Array(divisors * 8), divisors, book, Array(count * groups * size, True),
        Array(count * 2 * groups, True), Array(count * 4, True), groups, size, *map(Free, numbers),
    ]  # fmt: skip
    count, size, kind = draw("rows"), 2 * int(random.integers(1, 40)), int(random.integers(3))
    book, tried = Array(31 * 4) if kind == 2 else None, int(random.integers(1, 5))
    weights = [Array(periods * size * 4), periods]
    given = [dtype, Array(count * size * width), count, size, *weights, Free(kind), -6.0, 6.0, 1.0, 6e6]
    each = Array(count * 4, True)
    yield "fit_groups", [*given, book, Array(tried * 8), tried, Free(2), Free(int(kind == 0)), each, each]
    some = Array(tried * count * 4)
    yield "choose_groups", [*given, book, tried, some, some, Array(count, True), each]


def gptq_calls(random: np.random.Generator, draw: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield the factor of a matrix, and the rounding of some columns of a weight and the spreading of their errors."""
    count = draw("columns")
    stride = -(-count // 8) * 8
    yield "gptq_factor", [Array(count * stride * 8, True), Array(count * stride * 8, True), count, stride]
    columns, rows, groups = draw("columns"), 16 * min(draw("rows"), 3), int(random.integers(1, 4))
    first = int(random.integers(0, max(1, min(columns, 4))))
    stop = max(first, min(columns, first + int(random.integers(0, 40))))
    values, weights = Array(columns * rows * 4, True), Array(columns * columns * 4)
    yield "gptq_round", [
        columns, rows, groups, values, values, Array(columns * rows, True), weights, Array(columns * 4, zeros=True),
        Array(3 * groups * rows * 4), (None, Array(31 * 4))[int(random.integers(2))], Free(15), Free(first), Free(stop),
    ]  # fmt: skip
    yield "gptq_propagate", [
        columns, rows, values, Array(columns * rows * 4), weights, Free(first), Free(stop), Free(stop), Free(columns),
    ]  # fmt: skip


PACKED = [
    ("q4_0", 32, 18), ("q4_1", 32, 20), ("q5_0", 32, 22), ("q5_1", 32, 24), ("q8_0", 32, 34), ("q2_k", 256, 84),
    ("q3_k", 256, 110), ("q4_k", 256, 144), ("q5_k", 256, 176), ("q6_k", 256, 210), ("iq4_nl", 32, 18),
    ("iq4_xs", 256, 136), ("q1_0", 128, 18), ("q2_0", 64, 18), ("tq2_0", 256, 66), ("mxfp4", 32, 17), ("nvfp4", 64, 36),
    ("u1", 8, 1), ("u2", 8, 2), ("u3", 8, 3), ("u4", 8, 4), ("u5", 8, 5), ("u6", 8, 6), ("u8", 8, 8), ("s8", 8, 8),
    ("nibbles", 8, 4), ("e2m1", 8, 4), ("e4m3", 8, 8), ("e5m2", 8, 8), *((f"book{n}", 8, n) for n in range(2, 9)),
]  # fmt: skip
TARGETS: list[str] = []  # of the module, when it is loaded


def packed_calls(
    random: np.random.Generator, draw: Any, dtype: str, width: int, team: list[Any]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the products and decoders of packed weights, in one format."""
    name, block, size = PACKED[int(random.integers(len(PACKED)))]
    rows, columns, features, target = draw("rows"), draw("columns"), draw("features"), str(random.choice(TARGETS))
    aside = block == 8
    if aside:
        row_bytes = columns // 8 * size + -(-(columns % 8) * size // 8)
    else:
        columns = -(-min(columns, 100) // 8) * block if columns < 1 << 30 else columns
        row_bytes = columns // block * size
    group, block_rows = int(random.choice([0, 16, 32, 48, 256])), int(random.choice([1, 3]))
    kinds = {"f16": 2, "bf16": 2, "f32": 4, "f8_e8m0": 1, "f8_e4m3": 1, "u8": 1}
    scale, zero = str(random.choice([*kinds])), str(random.choice([*kinds]))
    floats = name.startswith(("book", "e4", "e5"))
    grid = -(-features // block_rows) * (-(-columns // group) if group else 1)
    zero = "none" if floats or random.random() < 0.5 else zero
    weight = [
        features, columns, name, Array(features * row_bytes), Array(grid * kinds[scale]) if aside else None,
        Array(grid * kinds[zero]) if aside and zero != "none" else None,
        Array(4 << size) if name.startswith("book") else None,
        Array(4) if random.random() < 0.5 else None, Free(group), Free(block_rows), scale, zero,
        Free(int(random.integers(2))), Free(int(random.integers(2))),
        Free(8 if name in ("u4", "nibbles") else 0),
    ]  # fmt: skip
    kind = str(random.choice(["float32", "int16", "int8"]))
    bias_dtype, bias_width = [("f32", 4), ("bf16", 2)][int(random.integers(2))]
    bias = Array(features * bias_width) if random.random() < 0.5 else None
    yield "packed_product", [
        *weight, target, kind, dtype, rows, Array(rows * columns * width), bias, bias_dtype,
        Array(rows * features * width, True), *team,
    ]  # fmt: skip
    first = int(random.integers(0, max(1, min(features, 4))))
    count = max(0, features - first)
    yield "packed_values", [
        *weight, target, dtype, Free(min(first, features)), count, Array(count * columns * width, True), *team,
    ]  # fmt: skip


def operator_calls(
    random: np.random.Generator, draw: Any, dtype: str, width: int, team: list[Any]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield what is computed between products."""
    rows, columns, batches, positions, heads = draw("rows"), draw("columns"), *(draw("few") for _ in range(3))
    weight = Array(columns * width) if random.random() < 0.7 else None
    yield "rms_norm", [
        dtype, rows, columns, Array(rows * columns * width), weight, dtype, Array(rows * columns * width, True), 1e-6,
        float(random.integers(2)), Free(int(random.integers(2))), *team,
    ]  # fmt: skip
    size, first = 16 * draw("few"), draw("few")
    turned, capacity, angles = min(size, 32), first + positions, int(random.choice([1, batches]))
    angle = Array(angles * positions * turned * width) if random.random() < 0.7 else None
    yield "rotary", [
        dtype, batches, positions, heads, size, turned if angle else Free(turned), angles, capacity, Free(first),
        Array(batches * positions * heads * size * width), angle, angle,
        Array(batches * heads * capacity * size * width, True), *team,
    ]  # fmt: skip
    size, value_size, group, queries = 8 * max(1, draw("few")), 8 * max(1, draw("few")), draw("few"), draw("few")
    keys = queries + draw("few")
    capacity = keys + draw("few")
    yield "attention", [
        dtype, batches, heads, group, queries, Free(keys), capacity, size, value_size, Free(draw("few")), 0.1,
        float(random.choice([0.0, 30.0])), Array(batches * heads * group * queries * size * width),
        Array(batches * heads * capacity * size * width), Array(batches * heads * capacity * value_size * width),
        Array(batches * heads * group * queries * value_size * width, True), *team,
    ]  # fmt: skip
    up = Array(columns * width) if random.random() < 0.7 else None
    yield "gated", [
        dtype, str(random.choice(["silu", "gelu_tanh", "relu"])), columns, Array(columns * width), up,
        Array(columns * width, True), *team,
    ]  # fmt: skip


SIZES = {
    "few": [0, 1, 2, 3, 5],
    "rows": [0, 1, 2, 3, 5, 200], "columns": [0, 1, 7, 16, 33, 64, 100, 700], "features": [0, 1, 3, 17, 130],
    "block": [32, 64, 96, 256, 1024], "blocks": [0, 1, 2, 3], "leaf": [241, 256, 1024, 1089, 5000],
}  # fmt: skip


class Program:
    """Calls all functions of a module, and raises AssertionError where one does not do as it should."""

    def __init__(self, kernels: Any, seed: int):
        self.kernels, self.random, self.done = kernels, np.random.default_rng(seed), dict[str, int]()
        ctypes.CDLL("libgomp.so.1")
        with open("/proc/self/maps") as maps:
            path = next(line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line)
        self.parallel = kernels.gomp_parallel(path)
        check(self.parallel is not None and kernels.gomp_parallel("/none/libgomp.so.1") is None, "gomp_parallel")

    def run(self) -> None:
        for _ in range(ROUNDS):
            for name, arguments in calls(self.random, self.size, self.parallel):
                self.fitting(name, arguments)
                self.call(name, [self.given(each, 0x7F) for each in arguments])  # sums of these wrap
            for name, arguments in calls(self.random, self.any_size, self.parallel):
                self.tried(name, arguments)
        self.definite()
        for _ in range(ROUNDS // 10):
            for name, arguments in calls(self.random, self.larger_size, self.parallel):
                self.wrong_sizes(name, arguments)
                self.wrong_arrays(name, arguments)

    def definite(self) -> None:
        """Check the factors of matrices that have some: random content is never positive definite."""
        for count in (0, 1, 7, 64, 65, 131):
            stride = -(-count // 8) * 8
            one = np.eye(count, stride)
            matrix, inverse = (placed(each.view(np.uint8).reshape(-1), 1 + 2 * count) for each in (4 * one, one))
            check(self.call("gptq_factor", [matrix, inverse, count, stride]), f"gptq_factor of {count}")
            check((inverse == (one / 2).view(np.uint8).reshape(-1)).all(), f"inverse of {count}")

    def size(self, kind: str) -> int:
        return int(self.random.choice(SIZES[kind]))

    def larger_size(self, kind: str) -> int:
        """Return a size of which every array has some bytes, so that another one does not fit."""
        return int(self.random.choice(SIZES[kind][2:]))

    def any_size(self, kind: str) -> int:
        """Return a size, which may be much too large, or nothing."""
        sizes = SIZES[kind] if self.random.random() < 0.5 else [0, *HUGE] if kind not in ("block", "leaf") else HUGE
        return int(self.random.choice(sizes))

    def fitting(self, name: str, arguments: list[Any]) -> None:
        """Check that a call succeeds, and that its results do not depend on where in memory arrays begin."""
        content = [self.content(each) if isinstance(each, Array) else None for each in arguments]
        wanted = self.results(name, arguments, content, 0)
        for offset in (1, 2, 13):
            found = self.results(name, arguments, content, offset)
            check(found == wanted, f"{name}{arguments} at offset {offset}")

    def results(self, name: str, arguments: list[Any], content: list[Any], offset: int) -> Any:
        given = [each if data is None else placed(data, offset) for each, data in zip(arguments, content, strict=True)]
        result = self.call(name, given)
        outs = [np.array(g) for g, each in zip(given, arguments, strict=True) if isinstance(each, Array) and each.out]
        # Results that are not complete may differ, and so may the bits of a NaN.
        return [repr(result), *(each.tobytes() for each in outs if result is not False)]

    def content(self, array: Array) -> np.ndarray:
        """Return bytes that are finite numbers of any dtype: the upper byte of none has an exponent of ones."""
        size = array.size
        if array.zeros:
            return np.zeros(size, np.uint8)
        return (self.random.integers(0, 0x3C, size) | self.random.integers(0, 2, size) << 7).astype(np.uint8)

    def tried(self, name: str, arguments: list[Any]) -> BaseException | None:
        """Return the error of a call with arrays of any bits; sizes that are out of bounds must be the reason."""
        try:
            self.call(name, [self.given(each) for each in arguments])
        except (*REFUSED, TypeError, BufferError, MemoryError) as error:
            return error
        return None

    def given(self, argument: Any, fill: int | None = None) -> Any:
        """Return an array at any address: of any bytes, or of that one."""
        if not isinstance(argument, Array):
            return argument
        size = argument.size if argument.size <= MOST_BYTES else 0
        fill = 0 if fill is not None and argument.zeros else fill
        data = self.random.integers(0, 256, size).astype(np.uint8) if fill is None else np.full(size, fill, np.uint8)
        return placed(data, int(self.random.integers(0, 16)))

    def call(self, name: str, arguments: list[Any]) -> Any:
        self.done[name] = self.done.get(name, 0) + 1
        plain = [each.value if isinstance(each, Free) else each for each in arguments]
        if name.startswith("packed"):  # arguments of a weight come first
            plain = [self.kernels.packed_weight(*plain[:15]), *plain[15:]]
        if name == "packed_product":
            plain = [(each,) if i in (0, 6, 8) else each for i, each in enumerate(plain)]
        return getattr(self.kernels, name)(*plain)

    def wrong_sizes(self, name: str, arguments: list[Any]) -> None:
        """Check that sizes are refused if one is wrong, or two are: products of wrong ones may be right, or wrap."""
        places = [i for i, each in enumerate(arguments) if isinstance(each, int | Free)]

        def wrong(value: int) -> list[int]:
            return [-1, -value, 0, -(2**63), 2**63, *HUGE, *(n + value for n in HUGE), *(value - n for n in HUGE)]

        changes = [{i: v} for i in places for v in wrong(number(arguments[i]))]
        for i, j in itertools.combinations(places, 2):
            pairs = list(itertools.product(wrong(number(arguments[i])), wrong(number(arguments[j]))))
            changes += [{i: a, j: b} for a, b in self.random.permutation(np.array(pairs, object))[:20]]
        for change in changes:
            changed = [change.get(i, each) for i, each in enumerate(arguments)]
            error = self.tried(name, changed)
            if not all(isinstance(arguments[i], Free) for i in change):
                check(isinstance(error, REFUSED), f"{name}{changed}: {error!r}")

    def wrong_arrays(self, name: str, arguments: list[Any]) -> None:
        for i, each in enumerate(arguments):
            if each is self.parallel:
                others = [0, 12345, "GOMP_parallel", datetime.datetime_CAPI]  # type: ignore[attr-defined]
                for other in others:
                    error = self.tried(name, [*arguments[:i], other, *arguments[i + 1 :]])
                    check(isinstance(error, TypeError), f"{name}: parallel={other!r}: {error!r}")
            elif isinstance(each, str):
                for other in ("i8", "", "f16\0", None, 3):
                    error = self.tried(name, [*arguments[:i], other, *arguments[i + 1 :]])
                    check(isinstance(error, ValueError | TypeError), f"{name}: dtype={other!r}: {error!r}")
            elif isinstance(each, Array):
                fit = np.zeros(each.size, np.uint8)
                others = [np.zeros(each.size + n, np.uint8) for n in (-1, 1, -each.size, 1000)]
                others += [np.zeros(2 * each.size, np.uint8)[::2], "text", 5, [0] * each.size]
                if each.out:
                    fit.flags.writeable = False
                    others += [fit, bytes(each.size)]
                for other in others:
                    error = self.tried(name, [*arguments[:i], other, *arguments[i + 1 :]])
                    check(isinstance(error, ValueError | TypeError | BufferError), f"{name}: {i}: {error!r}")


def number(argument: Any) -> int:
    return argument.value if isinstance(argument, Free) else argument


def placed(data: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy that begins at that offset of its memory, and ends where the memory does."""
    memory = np.empty(offset + len(data), np.uint8)
    memory[offset:] = data
    return memory[offset:]


def check(fine: bool, what: str) -> None:
    if not fine:
        raise AssertionError(what)


def main(path: str, seed: str) -> None:
    loader = importlib.machinery.ExtensionFileLoader("kernels", path)
    kernels = importlib.util.module_from_spec(importlib.util.spec_from_loader("kernels", loader))
    TARGETS[:] = kernels.packed_targets()
    program = Program(kernels, int(seed))
    check(kernels.supported(), "the processor has no AVX2")
    program.run()
    functions = {name for name in dir(kernels) if not name.startswith("_")} - {
        "supported",
        "gomp_parallel",
        "packed_targets",
        "packed_weight",
    }
    check(functions == set(program.done), f"functions that are not called: {functions ^ set(program.done)}")
    sys.stdout.write(f"{sum(program.done.values())} calls\n")


def settings() -> dict[str, Any]:
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return tomllib.load(file)["tool"]["setuptools"]["ext-modules"][0]


def compiled(sources: list[str], target: str) -> str:
    """Compile sources into a library that is watched, and return its path."""
    include = "-I" + sysconfig.get_paths()["include"]
    command = ["gcc", *FLAGS, include, *sources, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-10000:]
    return target


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables with which Python runs under the sanitizers; tests are skipped where they cannot be had."""
    if platform.machine() != "x86_64" or sys.platform != "linux" or not shutil.which("gcc"):
        pytest.skip("needs Linux on x86-64, and gcc")
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        pytest.skip("Python's headers are not here")
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    library = found.stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("this gcc comes without libasan")
    variables = {
        **os.environ,
        "LD_PRELOAD": os.path.realpath(library),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # Python's own allocator hides the ends of small objects
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        subprocess.run([sys.executable, "-c", ""], env=variables, check=True, capture_output=True, timeout=30)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"Python does not start under AddressSanitizer here: {error}")
    return variables


FAULTS = """
int beyond(const char *bytes) { return bytes[8]; }
int wraps(int number) { return number * 3; }
int crooked(const char *bytes) { return *(const int *)(bytes + 1); }
"""


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("beyond(ctypes.cast(libc.malloc(8), ctypes.c_void_p))", "heap-buffer-overflow"),
        ("wraps(2**30)", "signed integer overflow"),
        ("crooked(ctypes.cast(libc.malloc(8), ctypes.c_void_p))", "misaligned address"),
    ],
)
def test_faults_are_seen(environment, tmp_path, call, report):
    (tmp_path / "faults.c").write_text(FAULTS)
    path = compiled([str(tmp_path / "faults.c")], str(tmp_path / "faults.so"))
    setup = "import ctypes; libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p"
    code = f"{setup}; ctypes.CDLL({path!r}).{call}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and report in done.stderr


def test_every_function_with_sizes_that_fit_and_that_do_not(environment, tmp_path):
    with open("/proc/cpuinfo") as file:
        if "avx2" not in file.read():
            pytest.skip("the processor has no AVX2")
    path = compiled(settings()["sources"], str(tmp_path / "kernels.so"))
    command = [sys.executable, "-m", "tests.native.test_sanitized", path, "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-10000:]
    assert int(done.stdout.split()[0]) > 10000


def test_the_build_knows_every_file():
    folder = "aibit_format/native"
    files = sorted(f"{folder}/{name}" for name in os.listdir(os.path.join(ROOT, folder)))
    assert sorted(settings()["sources"]) == [name for name in files if name.endswith(".c")]
    assert sorted(settings()["depends"]) == [name for name in files if name.endswith(".h")]


if __name__ == "__main__":
    main(*sys.argv[1:])
