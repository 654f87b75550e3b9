"""Defines the callback through which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping

# Called with bytes done, total bytes, and the name of the tensor that was finished last.
Progress = Callable[[int, int, str], None]


def counting(sizes: Mapping[str, int], on_progress: Progress | None) -> Callable[[str], None]:
    """Return a function to call with the name of each tensor that is finished, which reports the bytes so far.

    Args:
        sizes: bytes of each tensor, by its name.
        on_progress: what to report to, if anything.
    """
    done, total = 0, sum(sizes.values())

    def finished(name: str) -> None:
        nonlocal done
        done += sizes[name]
        if on_progress is not None:
            on_progress(done, total, name)

    return finished
