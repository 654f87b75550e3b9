"""Counts the cores that this process may use: those it is bound to, and no more than its control groups grant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

_GROUPS = "/proc/self/cgroup"
_MOUNTED = "/sys/fs/cgroup"


def usable_cores() -> int:
    """Return how many threads of this process can run at once, at least one.

    ``os.cpu_count`` says how many cores the machine has. A container, ``taskset`` or ``PYTHON_CPU_COUNT`` may leave
    fewer to this process, and threads beyond those only wait for each other.
    """
    return max(1, min(_bound(), _granted()))


def _bound() -> int:
    """Return the number of cores that the process is bound to."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _granted() -> int:
    """Return the cores that fill the quota of the process's control groups, rounded up; many where there is none."""
    quotas = [-(-quota // period) for quota, period in _quotas() if quota > 0 and period > 0]
    return min(quotas, default=1 << 20)


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield (quota, period) in microseconds of every control group, of version 1 or 2, that this process is in."""
    for line in _read(_GROUPS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A limit of any group above holds too. Inside a container, the path may be one that only the host can see.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            folder = os.path.join(_MOUNTED, controllers, *parts[:depth])
            if controllers:
                values = [_read(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                values = _read(f"{folder}/cpu.max").split()
            if len(values) == 2 and all(value.strip().isdecimal() for value in values):  # "max" and -1: no limit
                yield int(values[0]), int(values[1])


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
