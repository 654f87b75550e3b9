"""Say as one short text what reading a whole file comes to, and make the file again from what was read.

Two ways of holding the same bytes must come to the same text; whatever is accepted must come out as it went in.
"""

import os
import tempfile

import numpy as np
import xxhash

from aibit_format.errors import AibitError
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, write


def verdict(source):
    """The code a file is refused with; else the codes of what is wrong inside, if anything, and its content's digest.

    Every tensor is decoded, every document read, and everything verified. Any exception but a coded one goes up.
    """
    try:
        file = File(source)
    except AibitError as error:
        return coded(error)
    with file:
        return inside(file)


def coded(error):
    if not error.code.startswith("AIB-E"):
        raise error
    return error.code


def inside(file):
    """Verdict on a file, or a set of shards, that opened."""
    content, codes = xxhash.xxh3_128(b"".join(part.tables.metadata_bytes for part in file.parts)), []
    with np.errstate(all="ignore"):
        for name in file:
            info = file.info(name)
            content.update(repr((name, info.shape, info.dtype, info.scheme, info.alias_of, info.transposed)).encode())
            for role, plane in file.planes(name).items():
                content.update(role.encode() + np.ascontiguousarray(plane).tobytes())
            try:
                values = file.dequantize(name)
                if values.shape != info.shape or values.dtype != np.float32:
                    raise ValueError(f"{name}: decoded to {values.dtype}{values.shape}, {info.shape} wanted")
                content.update(values.tobytes())
            except AibitError as error:
                codes.append(coded(error))
        for name in file.documents:
            try:
                content.update(name.encode() + bytes(file.documents[name]))
                file.check_document(name)
            except AibitError as error:
                codes.append(coded(error))
        try:
            file.verify()
        except AibitError as error:
            codes.append(coded(error))
    return " ".join([*codes, content.hexdigest()])


def check_comes_out_the_same(data):
    """Raise ValueError if ``data`` is accepted, and does not serialise to the same bytes; returns whether it is."""
    try:
        file = File(data, "full")
    except AibitError:
        return False
    if serialised(file) != bytes(data):
        raise ValueError("accepted, and its tables and bodies are other bytes")
    info = file.tables
    # A writer makes files of its own version, without the sections of a later one.
    if not (info.minor or info.compatible or info.extra) and rewritten(file) != bytes(data):
        raise ValueError("accepted, and the writer makes another file of its content")
    return True


def serialised(file):
    """The bytes of a file from its tables and bodies: everything else is zero."""
    info = file.tables
    out = bytearray(info.file_size)
    front = info.front_matter()
    head = info.header(front) + front
    out[: len(head)] = head
    bodies = [*info.documents.values()]
    bodies += [plane for name in file if not file.info(name).alias_of for plane in file.info(name).planes]
    for body in bodies:
        out[body.offset : body.offset + body.length] = file.storage.read_at(body.offset, body.length).tobytes()
    return bytes(out)


def rewritten(file):
    """The bytes that the writer makes of a file's tensors, metadata and documents, planned from nothing."""
    tensors = {}
    for name in file:
        info = file.info(name)
        tensor = Tensor(name, info.shape, info.dtype, info.scheme, info.alias_of, info.transposed)
        tensors[tensor] = {} if info.alias_of else file.planes(name)
    documents = {name: bytes(data) for name, data in file.documents.items()}
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        path = os.path.join(folder, "m.aibit")
        write(path, tensors, file.metadata, documents, alignment=file.tables.alignment)
        with open(path, "rb") as out:
            return out.read()


def memory():
    """A folder in memory, where there is one: thousands of small files are synced."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
