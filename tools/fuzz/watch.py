"""Watch what Python is asked to do while an input is read, by its audit events."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

# Events of code that is found or run, of processes, and of whatever changes files.
_FORBIDDEN = (
    "import", "exec", "pickle.find_class", "ctypes.", "subprocess.", "socket.", "os.exec", "os.fork", "os.kill",
    "os.posix_spawn", "os.putenv", "os.spawn", "os.system", "os.startfile", "os.chmod", "os.chown", "os.mkdir",
    "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.", "tempfile.", "urllib.",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Stops, and then reports, whatever a reader must not do. An audit hook stays: make one only.

    torch imports parts of itself when an input first needs them, and may. So may Python look for a codec among its own:
    torch lets a pickle encode text, by any codec's name, and names without a dot are looked for in ``encodings`` alone.
    Nobody else may.
    """

    def __init__(self) -> None:
        self._found: list[str] | None = None
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """While this lasts, nothing may be imported, run or changed; PermissionError at the end if it was tried."""
        self._found = []
        try:
            yield
        finally:
            found, self._found = self._found, None
            if found:
                raise PermissionError(f"reading an input asked for {'; '.join(found[:5])}")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._found is None or not self._is_bad(event, arguments):
            return
        self._found.append(f"{event}{arguments!r:.200}")
        raise PermissionError(event)

    def _is_bad(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            return isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        if not event.startswith(_FORBIDDEN):
            return False
        allowed = sys.stdlib_module_names | {"torch"} if _importing() else {"torch", "encodings"}
        if event == "import":
            return str(arguments[0]).partition(".")[0] not in allowed
        return not _importing()  # whatever a module does while it is imported: that was decided above


def _importing() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
