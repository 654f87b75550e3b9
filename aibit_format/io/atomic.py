"""Writes files that get their name only once they are whole and on the disk.

Where the system supports it (Linux, on nearly every local file system), a file is written without any name and linked
to one at the end: a killed process leaves nothing behind, except an empty file under a hidden name if it was just then
testing whether links can be made. Elsewhere, and where an older file is replaced in one step, the file lies beside its
target under a hidden name, locked until its process ends, however that happens; so does a directory. The next writer
in the same directory removes those that nobody has locked. Where there are no locks, nothing is removed, as nobody can
tell whether it is in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from ..errors import WriteError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

TEMPORARY = re.compile(r"\.aibit-[0-9a-f]{16}\.partial")  # what is being written, or was when a process was killed


class AtomicFile:
    """A file that becomes ``path`` when it is published. Used as a context, it leaves nothing without ``publish``.

    ``file`` is a descriptor for reading and writing. A file that replaces another has its permissions from the start;
    a new one has ``mode``, without what the process's umask takes away.

    Raises:
        WriteError: ``path`` exists, and ``overwrite`` is off; it is a directory; or its own directory is missing.
        OSError: no file can be created there.
    """

    def __init__(self, path: str, overwrite: bool = False, mode: int = 0o666) -> None:
        self.path, self._overwrite = path, overwrite
        self._hidden: str | None = None  # its temporary name, if it has one
        self.file = self._folder = -1
        self.published = False  # whether it has its final name
        if not os.path.basename(path) or (os.path.isdir(path) and not os.path.islink(path)):
            raise WriteError(f"{path}: is a directory; give the name of the file to write")
        if not overwrite and os.path.lexists(path):
            raise WriteError(f"{path}: exists; say overwrite=True (--force) to replace it")
        self._target = os.path.basename(path)
        try:
            self._folder = _open_folder(os.path.dirname(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            folder = os.path.dirname(path)
            raise WriteError(f"{path}: {error.strerror}: {folder}; it must exist to write into") from error
        try:
            sweep(self._folder)
            self._open(mode)
            if overwrite:
                keep_mode(self.file, self._target, self._folder)
        except BaseException:  # a signal, too
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        insist(self.discard)

    def __del__(self):
        insist(self.discard)  # where a signal came between its making and the context

    @property
    def name(self) -> str:
        """Return a path to the unpublished file, for code that opens it itself."""
        if self._hidden is None:
            return f"/proc/self/fd/{self.file}"
        return os.path.join(os.path.dirname(self.path), self._hidden)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data`` at the descriptor's position; the system may take only a part of it at a time.

        Raises:
            OSError: the disk is full, or failed.
        """
        left = memoryview(data).cast("B")
        while len(left):
            left = left[os.write(self.file, left) :]

    def publish(self) -> None:
        """Sync the file to the disk, give it its name, and close it.

        Raises:
            WriteError: another file has taken the name meanwhile, and ``overwrite`` is off.
            OSError: the disk failed.
        """
        os.fsync(self.file)
        if self._overwrite:
            if self._hidden is None:  # only renaming replaces a file
                old, self._hidden = self.name, _hidden_name()
                self._link(self._hidden, old)
            os.replace(self._hidden, self._target, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._hidden = None
        else:
            try:  # a link fails if the name has been taken meanwhile; a rename would replace it
                self._link(self._target, self.name if self._hidden is None else self._hidden)
            except FileExistsError:
                raise self._appeared() from None
            except PermissionError:
                if self._hidden is None:
                    raise
                self._rename()  # a file system without links
        self.published = True
        os.fsync(self._folder)
        self.discard()  # removes the hidden name, and closes the file: once published, it is never written to again

    def discard(self) -> None:
        """Close the file, and remove it if it is not published."""
        if self._hidden is not None:
            with contextlib.suppress(OSError):  # the next writer in this directory will try again
                os.unlink(self._hidden, dir_fd=self._folder)
            self._hidden = None
        # Forgotten first: closed twice, a number may be another file's.
        file, self.file = self.file, -1
        _close(file)
        folder, self._folder = self._folder, -1
        _close(folder)

    def _open(self, mode: int) -> None:
        nameless = _nameless(self._folder, mode)
        if nameless is not None:
            self.file = nameless
            _lock(self.file)
            return
        while True:
            self._hidden = name = _hidden_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.file = os.open(name, flags, mode, dir_fd=self._folder)
            if _lock(self.file) and _is(name, self._folder, self.file):
                return
            os.close(self.file)  # another process swept it up before it was locked
            self.file = -1

    def _link(self, name: str, old: str) -> None:
        """Link the file to another name in its directory; ``old`` is one that it has, or its path in /proc."""
        os.link(old, name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks="/" in old)

    def _rename(self) -> None:
        if self._hidden is None or os.path.lexists(self.path):
            raise self._appeared()
        os.rename(self._hidden, self._target, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._hidden = None

    def _appeared(self) -> WriteError:
        return WriteError(f"{self.path}: appeared while it was being written")


class AtomicFolder:
    """A temporary directory that will become the directory ``path``, or whose files will move into it.

    Leaving the context removes it, unless it was renamed. ``name`` is its path; renaming it publishes it. If it is
    ``private``, nobody else may look into it.

    Raises:
        OSError: it cannot be created there.
    """

    def __init__(self, path: str, private: bool = False) -> None:
        self.name, self._file, self._parent = "", -1, -1
        self._parent = _open_folder(os.path.dirname(path))
        try:
            sweep(self._parent)
            while True:
                hidden = _hidden_name()
                self.name = os.path.join(os.path.dirname(path), hidden)
                os.mkdir(hidden, 0o700 if private else 0o777, dir_fd=self._parent)
                self._file = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._parent)
                if _lock(self._file) and _is(hidden, self._parent, self._file):
                    break
                os.close(self._file)  # another process swept it up before it was locked
                self._file = -1
        except BaseException:  # a signal, too
            insist(self._discard)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        insist(self._discard)

    def __del__(self):
        insist(self._discard)  # where a signal came between its making and the context

    def _discard(self) -> None:
        if self._parent < 0:
            return
        if self.name:
            shutil.rmtree(os.path.basename(self.name), ignore_errors=True, dir_fd=self._parent)
        file, self._file = self._file, -1
        _close(file)
        parent, self._parent = self._parent, -1
        _close(parent)


def insist(cleanup: Callable[[], None]) -> None:
    """Clean up, and do it again if a signal raises an exception meanwhile, as Ctrl+C does."""
    try:
        cleanup()
    except (KeyboardInterrupt, SystemExit):
        cleanup()
        raise


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def sweep(folder: int) -> None:
    """Remove what dead processes left in a directory, given as an open descriptor."""
    if fcntl is None:
        return
    for name in os.listdir(folder):
        if not TEMPORARY.fullmatch(name):
            continue
        with contextlib.suppress(OSError):  # not ours, or already gone
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a process is writing it
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
                else:
                    os.unlink(name, dir_fd=folder)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Hold an exclusive lock on a folder, to give several files their names without mixing them with another set.

    Where there are no locks, this does nothing.
    """
    descriptor = _open_folder(folder)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def keep_mode(file: int | str, replaced: str, folder: int | None = None) -> None:
    """Give a file, by path or descriptor, the permissions of the regular file ``replaced`` in ``folder``, if any."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(replaced, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISREG(mode):
            os.chmod(file, stat.S_IMODE(mode) & 0o777)


def exchange(a: str, b: str) -> bool:
    """Swap two directories in one step; returns False, with both as they were, where the system cannot."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is None:
        return False
    return swap(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD: paths are those of this process; RENAME_EXCHANGE


def sync_folder(path: str) -> None:
    """Sync the names in a directory to the disk."""
    folder = _open_folder(path)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _nameless(folder: int, mode: int) -> int | None:
    """Create a file without a name in the directory; ``None`` where that, or naming it later, is impossible."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    trial = _hidden_name()

    def unlink() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(trial, dir_fd=folder)

    try:  # a link that fails after hours of work would be too late
        probe = os.open(".", flags, 0o600, dir_fd=folder)
        try:
            os.link(f"/proc/self/fd/{probe}", trial, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(probe)
            insist(unlink)
        return os.open(".", flags, mode, dir_fd=folder)
    except OSError:
        return None


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed; returns False if another process has locked it."""
    if fcntl is None:
        return True  # as in the last case below
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # without locks, nobody will take it for a leftover
    return True


def _is(name: str, folder: int, descriptor: int) -> bool:
    """Tell whether a name in the directory still is that file."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _hidden_name() -> str:
    return f".aibit-{secrets.token_hex(8)}.partial"


def _open_folder(path: str) -> int:
    return os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
