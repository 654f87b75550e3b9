"""Lets compiled code run on the threads of torch's operations.

torch's threads keep their cores busy for a while after each operation, waiting for the next one. Threads of our own
would share those cores with them; the same threads take up the work at once.
"""

from __future__ import annotations

from functools import cache

import torch

from ... import native


def threads() -> tuple[int, object | None]:
    """Return how many threads torch uses, and what runs a function on them, as ``native`` takes both."""
    return torch.get_num_threads(), parallel()


@cache
def parallel() -> object | None:
    """Return ``GOMP_parallel`` of the OpenMP runtime that torch has loaded, in a capsule; None if there is none.

    GNU's runtime has it, and LLVM's and Intel's under the same name. Linux says in ``/proc`` what is loaded.
    """
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split(maxsplit=5)[5].strip() for line in file if "omp" in line and ".so" in line}
    except OSError:
        return None
    names = ("libgomp", "libomp", "libiomp")
    runtimes = [path for path in sorted(paths) if path.rpartition("/")[2].startswith(names)]
    # torch's own copy lies beside it; a second one that something else has loaded has threads of its own.
    runtimes.sort(key=lambda path: "torch" not in path)
    found = (native.gomp_parallel(path) for path in runtimes)
    return next((function for function in found if function is not None), None)
