"""Ends what runs for too long in this thread, loops of another library's Python code included."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK = 0.25  # seconds between two looks at the clock


class _Ended(BaseException):  # not an Exception, which the code that is ended may catch
    pass


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if what is inside takes more seconds of this thread's processor.

    Another thread watches the clock and has the interpreter raise an exception in this one, between two instructions
    of Python. Nothing else ends a loop that never passes through code of ours: signals reach the main thread alone. A
    single call of C code is not ended. Where threads have no clock of their own, waiting for a processor counts too.
    """
    watched, spent = threading.get_ident(), _clock()
    end, over, fired, lock = spent() + seconds, threading.Event(), False, threading.Lock()

    def watch() -> None:
        nonlocal fired
        while not over.wait(_LOOK):
            with lock:
                if not over.is_set() and spent() > end:
                    fired = True
                    _set(watched, _Ended)

    watcher = threading.Thread(target=watch, name="aibit-deadline", daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            with lock:
                over.set()
                if fired:
                    _set(watched, None)  # it may not have been raised yet, and what comes next must not see it
            watcher.join()
    except _Ended:
        over.set()
        raise TimeoutError(f"it takes more than {seconds:.0f} s of a processor") from None


def _clock() -> Callable[[], float]:
    """Return a clock of this thread's processor that other threads can read, or one of the wall."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)


def _set(thread: int, exception: type[BaseException] | None) -> None:
    """Have the interpreter raise an exception at a thread's next instruction, or no longer raise it."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(exception) if exception is not None else ctypes.py_object()
    )
