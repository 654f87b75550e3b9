"""Reads, encodes, hashes and writes the tensors of a conversion, each piece while it is in the cache.

A few threads do all the work. Each takes the next step in the order of the source's files: threads read one after
another, but encode and write in parallel. A step is the rows for one chunk of the output, about a million codes;
tensors that cannot be read or encoded by rows are one step. The digests of the source's files are computed from the
bytes read for the steps. If less than half of a file is read by rows, its digest is a step of its own, at the start.
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

Done = tuple[int, EncodingError | None]  # the index of a tensor in the conversion, and the error of its encoding
Work = Callable[[], None]
Take = Callable[["_Buffer"], Work]  # reads the bytes for the work in turn with other threads, and returns the work

_NOWHERE = -1  # the file of a tensor whose values lie in no file, or not as they are


class Pipeline:
    """Write tensors of a conversion with several threads. Use it as a context: leaving it ends the threads.

    Args:
        conversion: that describes the tensors.
        mine: indices of the conversion's tensors to write.
        files: indices of the source's files to hash.
        out: the writer.
        jobs: number of threads.

    ``digests`` maps each of ``files`` to its xxh3_128 in hex, once ``run`` has finished.
    """

    def __init__(
        self, conversion: Conversion, mine: Sequence[int], files: Iterable[int], out: Writer | ShardedWriter, jobs: int
    ) -> None:
        self.digests: dict[int, str] = {}
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
        with self._turn:  # after an error, no further steps are taken
            self._steps = iter(())
        self._closing.close()

    def run(self) -> Iterator[Done]:
        """Write the tensors; yields each one's index and error when it is finished.

        Raises:
            SchemeError, SourceError, WriteError: the first error of any thread.
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
        """Take and do steps until none are left; each thread runs this."""
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
        """Yield all steps: digests first that are not computed on the way, then tensors in the order of the files."""
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
                    values = np.ascontiguousarray(
                        np.swapaxes(values, -1, -2)
                    )  # here, or encoding and measuring would each do it
                if chunks := self._out.chunks(tensor.name):  # what encoding takes of memory is that of a few rows
                    values, cuts = values.reshape(matrix(values.shape)), _cuts(chunks, matrix(values.shape)[0])
                    parts = _Parts.of(i, dtype, len(cuts))
                    for k, cut in enumerate(cuts):
                        self._rows(parts, k, values[cut.rows.start : cut.rows.stop], cut)
                    return
                planes = _encoded(assignment, values, dtype)
                self._out.write(tensor.name, planes)
                made = measure(tensor.scheme, planes, values, dtype)
        except SchemeError as error:
            raise self._named(assignment, error) from error
        self._finished.put((i, made))

    def _by_rows(self, entry: _Entry, reader: HashedReader | None) -> Iterator[Take]:
        """Yield the steps for one tensor, a step for each chunk of its largest plane."""
        assignment = self._conversion.tensors[entry.place]
        if assignment.read is None:
            return
        values, dtype = assignment.read()
        rows, columns = matrix(values.shape)
        values = values.reshape(rows, columns)
        parts = _Parts.of(entry.place, dtype, len(entry.chunks))

        def take(k: int, cut: _Cut, buffer: _Buffer) -> Work:
            piece = values[cut.rows.start : cut.rows.stop]
            if reader is not None:
                data = buffer.first(piece.nbytes)
                reader.read(entry.offset + cut.rows.start * (piece.nbytes // len(cut.rows)), data)
                piece = data.view(values.dtype).reshape(piece.shape)
            return partial(self._rows, parts, k, piece, cut)

        for k, cut in enumerate(_cuts(entry.chunks, rows)):
            yield partial(take, k, cut)

    def _rows(self, parts: _Parts, k: int, values: np.ndarray, cut: _Cut) -> None:
        """Encode and write the rows for one chunk, and measure the error on some of them."""
        assignment = self._conversion.tensors[parts.place]
        try:
            planes = _encoded(assignment, values, parts.dtype, cut.rows)
            self._out.write_rows(assignment.tensor.name, cut.rows, planes, cut.chunk)
            parts.sums[k] = sums(assignment.tensor.scheme, planes, values, parts.dtype, cut.measured)
        except SchemeError as error:
            raise self._named(assignment, error) from error
        with self._counting:
            parts.left -= 1
            done = not parts.left
        if done:
            noise, signal, largest = zip(*parts.sums, strict=True)
            self._finished.put((parts.place, EncodingError.of(math.fsum(noise), math.fsum(signal), max(largest))))

    def _named(self, assignment: Assignment, error: SchemeError) -> SchemeError:
        """Return a scheme's error with the names of the source and the tensor."""
        names = ", ".join(assignment.sources[:2])
        return SchemeError(f"{self._conversion.source.path}: tensor {assignment.tensor.name!r} (from {names}): {error}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """Locate a tensor's values in a file of the source, and list the chunks to write; none if it is written whole."""

    place: int
    file: int
    offset: int
    chunks: list[range]


@dataclass(slots=True)
class _Parts:
    """Collect the sums of a tensor that is written in chunks; ``left`` counts the chunks that are missing."""

    place: int
    dtype: str  # of its values
    sums: list[tuple[float, float, float]]
    left: int

    @classmethod
    def of(cls, place: int, dtype: str, count: int) -> Self:
        """Return the parts of a tensor that is written in ``count`` chunks."""
        return cls(place, dtype, [(0.0, 0.0, 0.0)] * count, count)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Name the rows that a chunk of the largest plane needs, and those of them that are measured, counted from them."""

    chunk: range
    rows: range
    measured: range


def _cuts(chunks: Sequence[range], count: int) -> list[_Cut]:
    """Find the rows, of ``count``, for each chunk. A row on both sides of a cut is encoded twice, and measured once."""
    row_bytes, every = chunks[-1].stop // count, measured(count).step
    found = []
    for chunk in chunks:
        rows = range(chunk.start // row_bytes, -(-chunk.stop // row_bytes))
        begun = -(-chunk.start // row_bytes)  # the first row that no earlier chunk has measured
        found.append(_Cut(chunk, rows, range(-(-begun // every) * every - rows.start, len(rows), every)))
    return found


class _Buffer:
    """Hold the memory of one thread, which is reused so that it stays in the cache."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def first(self, length: int) -> np.ndarray:
        """Return the first ``length`` bytes, u8, of memory that grows as needed."""
        if len(self._memory) < length:
            self._memory = np.empty(length, np.uint8)
        return self._memory[:length]


def _unread(work: Work) -> Take:
    """Return a step that reads nothing in turn: its work reads for itself, in parallel with other threads."""
    return lambda buffer: work


def _encoded(
    assignment: Assignment, values: np.ndarray, dtype: str, rows: range | None = None
) -> dict[str, np.ndarray]:
    """Encode the values of a tensor, or of some of its rows."""
    if assignment.tensor.scheme.lossy:
        values, dtype = rounded(values, dtype, assignment.model_dtype), assignment.model_dtype
    if assignment.method is not None:
        return assignment.method.encode(assignment.tensor.scheme, values, dtype, 0 if rows is None else rows.start)
    return encode(assignment.tensor.scheme, values, dtype, assignment.importance_of(rows))


_SETTING_THREADS = Lock()  # or a conversion beside this one would take its number of threads for torch's


def _threads(jobs: int) -> ThreadPoolExecutor:
    """Start threads in each of which torch runs on that thread alone.

    torch's own threads would wait at a barrier after every small operation, and for long whenever another process uses
    one of the cores.
    """
    try:
        import torch
    except ImportError:  # nothing here uses it then
        return ThreadPoolExecutor(jobs)

    def alone() -> None:
        # On its first operation, such as get_num_threads, a thread adopts the number that was last set in any thread.
        torch.get_num_threads()
        torch.set_num_threads(1)

    with _SETTING_THREADS:
        before = torch.get_num_threads()
        workers, all_there = ThreadPoolExecutor(jobs, initializer=alone), Barrier(jobs + 1)
        for _ in range(jobs):
            workers.submit(all_there.wait)
        all_there.wait()
        torch.set_num_threads(before)  # for threads that start later
    return workers
