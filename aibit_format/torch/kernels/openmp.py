"""The threads that torch's operations run on, for compiled code of ours.

torch's threads keep their cores busy for a while after each operation, in wait for the next one. Threads of our own
would share those cores with them; the same threads take up the work at once.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch


def threads() -> tuple[int, int]:
    """How many threads torch uses, and what calls a function from them: the last two arguments of ``native``'s."""
    return torch.get_num_threads(), parallel()


@cache
def parallel() -> int:
    """The address of ``GOMP_parallel`` in the OpenMP runtime that torch has loaded; 0 where there is none to be found.

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
