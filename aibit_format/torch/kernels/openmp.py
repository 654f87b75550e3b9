"""Lets compiled code run on the threads of torch's operations.

torch's threads keep their cores busy for a while after each operation, waiting for the next one. Threads of our own
would share those cores with them; the same threads take up the work at once.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch


def threads() -> tuple[int, int]:
    """Return how many threads torch uses, and the address of what runs a function on them, as ``native`` takes both."""
    return torch.get_num_threads(), parallel()


@cache
def parallel() -> int:
    """Return the address of ``GOMP_parallel`` in the OpenMP runtime that torch has loaded; 0 if there is none.

    GNU's runtime has it, and LLVM's and Intel's under the same name. Linux says in ``/proc`` what is loaded.
    """
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split(maxsplit=5)[5].strip() for line in file if "omp" in line and ".so" in line}
    except OSError:
        return 0
    names = ("libgomp", "libomp", "libiomp")
    runtimes = [path for path in sorted(paths) if path.rpartition("/")[2].startswith(names)]
    # torch's own copy lies beside it; a second one that something else has loaded has threads of its own.
    runtimes.sort(key=lambda path: "torch" not in path)
    for path in runtimes:
        function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0
