"""Weights on their way from a source to a writer: read, encoded, hashed and written while they are in the cache.

A few threads do all of it. Each takes what comes next in the order of the source's files, reads it while the others
wait their turn, and encodes and writes it beside them. What is taken at a time are the rows that make one leaf of the
output, about a million codes; tensors that cannot be had or encoded by rows are taken as a whole. The digest of a
source's file is taken on the way, or, where few of its bytes go by rows, by one of the threads before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Barrier, Lock
from typing import Self

import numpy as np

from ..errors import SchemeError
from ..file.sharded_writer import ShardedWriter
from ..file.writer import Writer
from ..io.hashed_reader import HashedReader
from ..schemes.base import matrix
from .conversion import Assignment, Conversion, rounded
from .encoders import encode
from .error import EncodingError, measure, measured, sums

Done = tuple[int, EncodingError | None]  # the place of a tensor in the conversion, and the error made
Work = Callable[[], None]
Take = Callable[["_Buffer"], Work]  # reads what the work needs, when it is one's turn

_NOWHERE = -1  # the file of what is in no file, or is not there as it is


class Pipeline:
    """What takes tensors of a conversion to a writer. Use it as a context: leaving it ends its threads.

    Args:
        conversion: what is to be done.
        mine: places of the conversion's tensors that are wanted.
        files: places of the source's files whose digests are wanted.
        out: the writer.
        jobs: threads.
    """

    def __init__(
        self, conversion: Conversion, mine: Sequence[int], files: Iterable[int], out: Writer | ShardedWriter, jobs: int
    ) -> None:
        self.digests: dict[int, str] = {}  # of the files, in hex, once all tensors are through
        self._conversion, self._out, self._jobs = conversion, out, jobs
        self._turn, self._counting = Lock(), Lock()
        self._finished: SimpleQueue[Done | BaseException | None] = SimpleQueue()
        with contextlib.ExitStack() as stack:
            self._readers = {i: stack.enter_context(HashedReader(conversion.source.files[i].path)) for i in files}
            self._workers = stack.enter_context(_threads(jobs))
            self._closing = stack.pop_all()
        self._steps = self._all(mine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._turn:  # after an error, what has not begun is not begun
            self._steps = iter(())
        self._closing.close()

    def run(self) -> Iterator[Done]:
        """All tensors, as they are finished.

        Raises:
            SchemeError, SourceError, WriteError: the first that any of the threads met.
        """
        for _ in range(self._jobs):
            self._workers.submit(self._work)
        working = self._jobs
        while working:
            found = self._finished.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                working -= 1
            else:
                yield found
        missing = [i for i in self._readers if i not in self.digests]
        self.digests |= zip(
            missing, self._workers.map(HashedReader.digest, (self._readers[i] for i in missing)), strict=True
        )

    def _work(self) -> None:
        """What each thread does until nothing is left."""
        buffer = _Buffer()
        try:
            while True:
                with self._turn:
                    take = next(self._steps, None)
                    work = take(buffer) if take else None
                if work is None:
                    break
                work()
            self._finished.put(None)
        except BaseException as error:
            self._finished.put(error)

    def _all(self, mine: Sequence[int]) -> Iterator[Take]:
        """What there is to do."""
        files = {file.name: i for i, file in enumerate(self._conversion.source.files)}
        entries = sorted((self._entry(i, files) for i in mine), key=lambda entry: (entry.file, entry.offset))
        covered = dict.fromkeys(self._readers, 0)
        for entry in entries:
            if entry.chunks and entry.file in covered:
                covered[entry.file] += self._conversion.tensors[entry.place].source_bytes
        apart = {i for i, nbytes in covered.items() if 2 * nbytes < self._conversion.source.files[i].size}
        for i in apart:
            yield _unread(partial(self._digest, i))
        for entry in entries:
            if entry.chunks:
                yield from self._by_rows(entry, None if entry.file in apart else self._readers.get(entry.file))
            else:
                yield _unread(partial(self._whole, entry.place))

    def _entry(self, i: int, files: dict[str, int]) -> _Entry:
        assignment = self._conversion.tensors[i]
        if assignment.read is None or not assignment.at_hand:
            return _Entry(i, _NOWHERE, i, [])
        chunks = []
        if assignment.tensor.transposed == assignment.source_transposed:
            chunks = self._out.chunks(assignment.tensor.name)
        found = self._conversion.source.tensors[assignment.sources[0]]
        if found.offset is None or found.file not in files:
            return _Entry(i, _NOWHERE, i, chunks)
        return _Entry(i, files[found.file], found.offset, chunks)

    def _digest(self, file: int) -> None:
        self.digests[file] = self._readers[file].digest()

    def _whole(self, i: int) -> None:
        """Read, round, encode and write one tensor."""
        assignment, made = self._conversion.tensors[i], None
        tensor = assignment.tensor
        try:
            if assignment.keep is not None:
                self._out.write(tensor.name, assignment.keep())
            if assignment.read is not None:
                values, dtype = assignment.read()
                if tensor.transposed != assignment.source_transposed:
                    values = np.ascontiguousarray(values.T)  # once here: encoding and measuring would each do it again
                planes = _encoded(assignment, values, dtype)
                self._out.write(tensor.name, planes)
                made = measure(tensor.scheme, planes, values, dtype)
        except SchemeError as error:
            raise self._named(assignment, error) from error
        self._finished.put((i, made))

    def _by_rows(self, entry: _Entry, reader: HashedReader | None) -> Iterator[Take]:
        """The same of one tensor, leaf by leaf of what becomes of it."""
        assignment = self._conversion.tensors[entry.place]
        if assignment.read is None:
            return
        values, dtype = assignment.read()
        rows, columns = matrix(values.shape)
        values = values.reshape(rows, columns)
        row_bytes, every = entry.chunks[-1].stop // rows, measured(rows).step  # of the largest plane
        parts = _Parts(entry.place, dtype, [(0.0, 0.0, 0.0)] * len(entry.chunks), len(entry.chunks))

        def take(k: int, chunk: range, here: range, chosen: range, buffer: _Buffer) -> Work:
            piece = values[here.start : here.stop]
            if reader is not None:
                data = buffer.first(piece.nbytes)
                reader.read(entry.offset + here.start * (piece.nbytes // len(here)), data)
                piece = data.view(values.dtype).reshape(piece.shape)
            return partial(self._rows, parts, k, piece, here, chunk, chosen)

        for k, chunk in enumerate(entry.chunks):
            here = range(chunk.start // row_bytes, -(-chunk.stop // row_bytes))
            begun = -(-chunk.start // row_bytes)  # the first row that no chunk before has measured
            chosen = range(-(-begun // every) * every - here.start, len(here), every)
            yield partial(take, k, chunk, here, chosen)

    def _rows(self, parts: _Parts, k: int, values: np.ndarray, rows: range, chunk: range, chosen: range) -> None:
        """Encode and write the rows that make one chunk, and measure the ``chosen`` of them."""
        assignment = self._conversion.tensors[parts.place]
        try:
            planes = _encoded(assignment, values, parts.dtype)
            self._out.write_rows(assignment.tensor.name, rows, planes, chunk)
            parts.sums[k] = sums(assignment.tensor.scheme, planes, values, parts.dtype, chosen)
        except SchemeError as error:
            raise self._named(assignment, error) from error
        with self._counting:
            parts.left -= 1
            done = not parts.left
        if done:
            noise, signal, largest = zip(*parts.sums, strict=True)
            self._finished.put((parts.place, EncodingError.of(math.fsum(noise), math.fsum(signal), max(largest))))

    def _named(self, assignment: Assignment, error: SchemeError) -> SchemeError:
        """What a scheme complains of, and of which tensor."""
        names = ", ".join(assignment.sources[:2])
        return SchemeError(f"{self._conversion.source.path}: tensor {assignment.tensor.name!r} (from {names}): {error}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor's values begin in a file of the source, and the chunks it goes in, if any."""

    place: int
    file: int
    offset: int
    chunks: list[range]


@dataclass(slots=True)
class _Parts:
    """A tensor that goes by rows, and what has been measured of each of its chunks."""

    place: int
    dtype: str  # of its values
    sums: list[tuple[float, float, float]]
    left: int


class _Buffer:
    """Memory of one thread, used again and again, so that it stays in the cache."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def first(self, length: int) -> np.ndarray:
        """Its first ``length`` bytes."""
        if len(self._memory) < length:
            self._memory = np.empty(length, np.uint8)
        return self._memory[:length]


def _unread(work: Work) -> Take:
    """For what reads for itself, beside the others."""
    return lambda buffer: work


def _encoded(assignment: Assignment, values: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Planes of a tensor's values, or of some of its rows."""
    if assignment.tensor.scheme.lossy:
        values, dtype = rounded(values, dtype, assignment.model_dtype), assignment.model_dtype
    return encode(assignment.tensor.scheme, values, dtype)


def _threads(jobs: int) -> ThreadPoolExecutor:
    """Threads that use torch each on its own.

    torch's own threads would meet at a barrier after every small operation, and stand there whenever another process
    has one of the cores.
    """
    try:
        import torch
    except ImportError:  # then nothing here uses it
        return ThreadPoolExecutor(jobs)

    def alone() -> None:
        # At its first operation a thread takes over the number that was last set anywhere. Asking counts as one.
        torch.get_num_threads()
        torch.set_num_threads(1)

    before = torch.get_num_threads()
    workers, all_there = ThreadPoolExecutor(jobs, initializer=alone), Barrier(jobs + 1)
    for _ in range(jobs):
        workers.submit(all_there.wait)
    all_there.wait()
    torch.set_num_threads(before)  # for threads that begin after these
    return workers
