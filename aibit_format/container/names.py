"""Checks the names a file may hold: of tensors, documents, schemes and metadata keys.

Character sets are closed so that a name can be printed, compared and, for documents, extracted anywhere.
Each function returns what is wrong with a name, or ``None`` if it is valid.
"""

from __future__ import annotations

import re

from .layout import MAX_NAME

TENSOR_CHARACTERS = bytes(b for b in range(0x21, 0x7F) if b not in b"\"'\\")
_DOCUMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
_SCHEME = re.compile(r"[a-z][a-z0-9_]*([-.:][a-z0-9_]+)*")
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))})
_RESERVED_PREFIX = "__"


def bad_tensor_name(name: str) -> str | None:
    """Check a tensor's name: 1 to 255 printable ASCII characters, no space, quote or backslash, no leading ``__``."""
    data = name.encode("utf-8", "surrogatepass")
    if not 1 <= len(data) <= MAX_NAME:
        return f"name of {len(data)} bytes"
    if data.translate(None, TENSOR_CHARACTERS):
        return "name has characters outside the set"
    if name.startswith(_RESERVED_PREFIX):
        return "names starting with '__' are reserved"
    return None


def bad_document_name(name: str) -> str | None:
    """Check a document's name: a relative path of plain components, safe to create on any file system."""
    if not 1 <= len(name) <= MAX_NAME:
        return f"name of {len(name)} bytes"
    if not _DOCUMENT.fullmatch(name):
        return "name has characters outside the set"
    for part in name.split("/"):
        if part.split(".")[0].lower() in _DEVICES:
            return "name is a device on some systems"
        if part.endswith("."):
            return "a component ends in a dot"
    return None


def bad_key(key: str) -> str | None:
    """Check a metadata key, which must be namespaced: ``lower_snake.parts``."""
    return None if len(key) <= MAX_NAME and _KEY.fullmatch(key) else "key is not namespaced lower_snake"


def bad_scheme_name(name: str) -> str | None:
    """Check a scheme's name: lower case, parts joined by ``-``, ``.`` or ``:``; private schemes start with ``x-``."""
    return None if len(name) <= MAX_NAME and _SCHEME.fullmatch(name) else "not a scheme name"
