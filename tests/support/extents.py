"""Put bytes into files in each way, and make file systems that share extents."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest

from aibit_format.io import extents

REAL = dict(extents.WAYS)


def as_blocks(source, start, target, offset, length):
    """Share blocks, as far as anybody can see: they are copied, and must be whole."""
    block = os.fstat(target).st_blksize
    if start % block or offset % block or length % block or not length:
        raise AssertionError(f"no whole blocks: {length} bytes from {start} at {offset}")
    REAL["copy"](source, start, target, offset, length)
    done = min(length, extents._COPIED)
    return done + (as_blocks(source, start + done, target, offset + done, length - done) if length > done else 0)


# What a system has, the best way first.
SYSTEMS = {
    "all there is": REAL,
    "blocks": {"clone": as_blocks, "copy": REAL["copy"]},
    "the kernel": {name: way for name, way in REAL.items() if name != "clone"},
    "this process": {"copy": REAL["copy"]},
}


@contextlib.contextmanager
def small_disk(folder, size, kind="btrfs"):
    """Mount a file system of its own, of so many bytes, that shares extents."""
    image, place = folder / f"{kind}.img", folder / kind
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(size)
    for command in ([f"mkfs.{kind}", "-q", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"no file system that shares extents can be made here: {error}")
        if done.returncode:
            pytest.skip(f"no file system that shares extents can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # mappings of its files may be alive
        image.unlink()
