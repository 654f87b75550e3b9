"""Look at where the parameters of a model lie."""

from __future__ import annotations

import os


def place_in_file(file):
    """Return a function that tells at which byte of the file a tensor's memory begins; None if it is no page of it."""
    path, ranges = os.path.realpath(file.path), []
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if fields[-1].rstrip("\n") == path:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                ranges.append((start, end, int(fields[2], 16)))

    def place(tensor):
        at = tensor.data_ptr()
        return next((at - start + offset for start, end, offset in ranges if start <= at < end), None)

    return place


def parameters_outside(model, file) -> list[str]:
    """Return the names of parameters whose memory is in no mapping of the file."""
    place = place_in_file(file)
    return [name for name, value in model.named_parameters() if value.numel() and place(value) is None]


def offset_of(file, name: str, role: str) -> int:
    """Return the byte of the file at which a plane begins."""
    return next(plane.offset for plane in file.info(name).planes if plane.role == role)
