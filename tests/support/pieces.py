"""Models of SentencePiece, built by hand."""

from __future__ import annotations

import struct

from aibit_format.formats.protobuf import written

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, ADDED, BYTE = 1, 2, 3, 4, 6


def model(pieces, kind: int, **trainer: int) -> bytes:
    """A model of (text, score, kind of piece); its trainer states the type, the size and other fields by number."""
    found = b""
    for text, score, of in pieces:
        piece = written(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        found += written(1, piece + (b"" if of == NORMAL else written(3, of)))
    fields = {3: kind, 4: len(pieces), **{int(key[1:]): value for key, value in trainer.items()}}
    found += written(2, b"".join(written(*pair) for pair in sorted(fields.items())))
    plain = written(1, b"identity") + written(3, 0) + written(4, 0) + written(5, 1)
    return found + written(3, plain)


SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]


def unigram() -> bytes:
    """Pieces of a, b and c, of which z has the least score."""
    learned = [
        ("a", -2.0),
        ("b", -2.5),
        ("c", -3.0),
        ("ab", -2.2),
        ("abc", -4.0),
        (SPACE, -1.0),
        (SPACE + "a", -1.5),
        ("z", -9.0),
    ]
    return model([*SPECIAL, *((text, score, NORMAL) for text, score in learned)], 1)


def bpe() -> bytes:
    """Pieces that are joined: abc from ab and c, and bytes for all else."""
    learned = [
        ("ab", -1.0),
        ("bc", -2.0),
        ("abc", -3.0),
        (SPACE + "abc", -4.0),
        (SPACE, -5.0),
        ("a", -6.0),
        ("b", -7.0),
        ("c", -8.0),
    ]
    return model([*SPECIAL, *BYTES, *((text, score, NORMAL) for text, score in learned)], 2, _35=1)
