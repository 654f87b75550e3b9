"""Look at where the parameters of a model lie."""

from __future__ import annotations

import os


def parameters_outside(model, file) -> list[str]:
    """Return the names of parameters whose memory is in no mapping of the file."""
    path, ranges = os.path.realpath(file.path), []
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if fields[-1].rstrip("\n") == path:
                ranges.append([int(address, 16) for address in fields[0].split("-")])
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.numel() and not any(start <= parameter.data_ptr() < end for start, end in ranges)
    ]
