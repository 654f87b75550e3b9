"""Products of packed weights for Arm's processors, under emulation: the results of portable code, bit for bit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NATIVE = os.path.join(ROOT, "aibit_format", "native")
PROGRAM = os.path.join(ROOT, "tests", "native", "emulated.c")


def built(compiler: str, out: str, *flags: str) -> str:
    """Compile the program and the functions of all kinds of processors; return its path."""
    if not shutil.which(compiler) or not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        pytest.skip(f"needs {compiler} and Python's headers")
    sources = [os.path.join(NATIVE, f"packed_{name}.c") for name in ("portable", "avx2", "vnni", "dotprod")]
    include = "-I" + sysconfig.get_paths()["include"]
    command = [compiler, "-O2", "-ffp-contract=off", include, *flags, PROGRAM, *sources, "-lm", "-o", out]
    subprocess.run(command, check=True, capture_output=True)
    return out


def here(tmp_path) -> list[str]:
    if platform.machine() != "x86_64":
        pytest.skip("compares with a processor of x86-64")
    program = built("gcc", str(tmp_path / "here"))
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()


def test_kinds_of_processors_agree_here(tmp_path):
    _, ran = here(tmp_path)
    with open("/proc/cpuinfo") as file:
        found = file.read()
    assert int(ran) == 1 | ("avx2" in found) << 1 | ("avx512_vnni" in found) << 2


def test_an_emulated_arm_gives_the_same_with_and_without_its_dot_products(tmp_path):
    if not shutil.which("qemu-aarch64"):
        pytest.skip("needs qemu-aarch64")
    program = built("aarch64-linux-gnu-gcc", str(tmp_path / "arm"), "-static")
    done = subprocess.run(["qemu-aarch64", "-cpu", "max", program, "equal"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    checksum, ran = done.stdout.split()
    assert int(ran) == 3 and checksum == here(tmp_path)[0]
    old = subprocess.run(["qemu-aarch64", "-cpu", "cortex-a53", program, "equal"], capture_output=True, text=True)
    assert old.stdout.split() == [checksum, "1"]
