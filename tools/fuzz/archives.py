"""Change pickles, ``torch.save``'s archives of them, and other ZIP archives."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import zipfile

from . import LONGEST, Mutate, json_text

# What a pickle may name: what torch's reader allows, what it must not, and modules that nothing here has imported.
_NAMED = (
    b"torch FloatStorage", b"torch HalfStorage", b"torch._utils _rebuild_tensor_v2", b"torch._utils _rebuild_parameter",
    b"torch._utils _rebuild_sparse_tensor", b"torch._utils _rebuild_meta_tensor_no_storage", b"torch Tensor",
    b"torch._utils _rebuild_qtensor", b"torch._utils _rebuild_wrapper_subclass", b"torch.nn.parameter Parameter",
    b"torch.serialization _get_layout", b"torch device", b"torch Size", b"torch bfloat16", b"collections OrderedDict",
    b"torch.storage UntypedStorage", b"collections Counter", b"builtins set", b"builtins bytearray", b"_codecs encode",
    b"os system", b"posix system", b"builtins eval", b"builtins exec", b"builtins getattr", b"subprocess Popen",
    b"colorsys hls_to_rgb", b"this d", b"numpy._core.multiarray _reconstruct", b"torch.hub load", b"torch load",
    b"torch._utils _rebuild_device_tensor_from_numpy", b"torch._tensor _rebuild_from_type_v2",
)  # fmt: skip
_CALLS = (
    b"cos\nsystem\n(X\x04\x00\x00\x00truetR0", b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR0", b"cthis\nd\n0",
    b"cposix\nsystem\n\x8c\x04true\x85R0", b"\x8c\x08colorsys\x8c\nhls_to_rgb\x930",
)  # fmt: skip


def pickle_changed(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another file of ``torch.save``, of either of its formats."""
    way = rng.random()
    if way < 0.08:
        return bytes(mutate(data, LONGEST))
    if data[:2] != b"PK":
        return _opcodes_changed(data, rng, mutate)
    members = [(name.split("/", 1)[-1], content) for name, content in members_of(data)]
    at = 0 if way < 0.7 else rng.randrange(len(members))
    name, content = members[at]
    if name == "data.pkl":
        members[at] = name, _opcodes_changed(content, rng, mutate)
    elif way < 0.8:
        members[at] = name, bytes(mutate(content or b"\0", len(content) + 8))
    elif way < 0.87:
        members[at] = rng.choice((name + "0", rng.choice(members)[0], "data/9")), content
    elif way < 0.93:
        del members[at]
    else:
        members.append(members[at])
    return torch_archive(members) if rng.random() < 0.9 else zipped(members, rng)


def zip_changed(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another archive of a model."""
    way = rng.random()
    if way < 0.1:
        return bytes(mutate(data, LONGEST))
    members = members_of(data)
    at = rng.randrange(len(members))
    name, content = members[at]
    if way < 0.75:
        if name.endswith(".json"):
            content = json_text.changed(content, rng, mutate)
        elif content[:2] in (b"PK", b"\x80\x02"):
            content = pickle_changed(content, rng, mutate)
        else:
            content = bytes(mutate(content or b"\0", len(content) + 64))
        members[at] = name, content
    elif way < 0.85:
        text = bytes(mutate(name.encode(), 60)).decode("utf-8", "replace")
        members[at] = rng.choice((text, rng.choice(members)[0], "a/" + name, "LICENSE", "vocab.txt")), content
    elif way < 0.95:
        del members[at]
    else:
        members.append(members[at])
    return zipped(members, rng)


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    """Members of an archive, as they are stored."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        if len(infos) > 64 or sum(info.file_size for info in infos) > 4 * LONGEST:
            raise ValueError("too much for an input")
        return [(info.filename, archive.read(info)) for info in infos]


def zipped(members: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """An archive of these members, written by ``zipfile``."""
    stream, method = io.BytesIO(), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def torch_archive(members: list[tuple[str, bytes]]) -> bytes:
    """An archive of these members as torch itself writes it: places in it follow from rules that a reader relies on."""
    import torch

    stream = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(stream)
    for name, content in members:
        if name not in ("version", ".data/serialization_id"):  # its own
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return stream.getvalue()


def _opcodes_changed(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another pickle: an opcode fewer, twice, elsewhere or with another argument, or a call of something."""
    pieces, rest = _opcodes(data)
    at = rng.randrange(len(pieces))
    way = rng.choice(("drop", "repeat", "swap", "argument", "argument", "argument", "name", "call", "other"))
    if way == "drop":
        del pieces[at]
    elif way == "repeat":
        pieces.insert(at, pieces[at])
    elif way == "swap":
        other = rng.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif way == "other":
        pieces[at] = rng.choice(pieces)
    elif way == "call":
        pieces.insert(at, rng.choice(_CALLS))
    elif way == "name":
        named = [i for i, piece in enumerate(pieces) if piece[:1] == b"c"] or [at]
        pieces[rng.choice(named)] = b"c" + rng.choice(_NAMED).replace(b" ", b"\n") + b"\n"
    else:
        pieces[at] = _argument_changed(pieces[at], rng, mutate)
    return b"".join(pieces) + rest


def _argument_changed(piece: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    if piece[:1] in b"KMJ":  # integers of one, two and four bytes
        old = int.from_bytes(piece[1:], "little")
        new = rng.choice((0, 1, 2, old + 1, old - 1, 2 * old, 255, 1 << 16, -1, 1 << 31, 1 << 40, 1 << 62, 1 << 64))
        return pickle.dumps(new, 2)[2:-1]
    if piece[:1] == b"X":
        text = bytes(mutate(piece[5:] or b"a", 60))
        return b"X" + len(text).to_bytes(4, "little") + text
    if piece in (b"\x88", b"\x89"):
        return b"\x88" if piece == b"\x89" else b"\x89"
    return bytes(mutate(piece, len(piece) + 4))


def _opcodes(data: bytes) -> tuple[list[bytes], bytes]:
    """The opcodes of the pickles that follow each other, and what is behind them."""
    pieces: list[bytes] = []
    start = 0
    for _ in range(5):  # as many as the format from before ZIP archives has
        try:
            places = [at or 0 for _, _, at in pickletools.genops(data[start:])]
        except ValueError:
            break
        ends = [*places[1:], places[-1] + 1]
        pieces += [data[start + low : start + high] for low, high in zip(places, ends, strict=True)]
        start += ends[-1]
    if not pieces:
        raise ValueError("no pickle")
    return pieces, data[start:]
