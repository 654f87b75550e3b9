"""Measures how much memory this process takes at most while something runs."""

from __future__ import annotations

import torch

_STATUS, _RESET = "/proc/self/status", "/proc/self/clear_refs"
_FORGET_THE_PEAK = "5"  # see proc_pid_clear_refs(5)


class PeakMemory:
    """Measures from its making on: resident bytes, mapped pages among them, beyond those there were.

    On a GPU it is what torch allocates there.
    """

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        self._before = _resident("VmRSS")
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        elif self._before is not None:
            try:
                with open(_RESET, "w", encoding="ascii") as file:
                    file.write(_FORGET_THE_PEAK)
            except OSError:  # a sandbox
                self._before = None

    def bytes(self) -> int | None:
        """Return the peak so far; None where the system does not tell it."""
        if self._before is None:
            return None
        peak = _resident("VmHWM") if self._cuda is None else torch.cuda.max_memory_allocated(self._cuda)
        return None if peak is None else max(0, peak - self._before)


def _resident(field: str) -> int | None:
    """Return a field of this process's status, in bytes; None where there is none."""
    try:
        with open(_STATUS, encoding="ascii") as file:
            lines = file.readlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
