"""Recognizes paths that lead to no model although it looks so, and says what to do about each."""

from __future__ import annotations

import os
import re

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_SIZE = re.compile(rb"^size (\d{1,20})$", re.MULTILINE)
_MOST = 1024  # bytes of a pointer, by the specification of Git LFS
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_DESCRIPTIONS = ("config.json", "params.json")  # of a model, in transformers' terms or in its maker's own
_SHOWN = 3  # names in a message


def what_is_wrong(path: str) -> str | None:
    """Return why nothing can be read at a path, and what to do; ``None`` if nothing known is wrong."""
    if os.path.islink(path) and not os.path.exists(path):
        return (
            f"is a link to {os.readlink(path)}, which is not there; of a snapshot in the hub's cache, copy the files "
            "that the links lead to (cp -rL), or download it again"
        )
    if not os.path.exists(path):
        return "no such file or directory"
    if os.path.isfile(path):
        return _pointer(path)
    return None


def describes_model(path: str) -> bool:
    """Tell whether a path is a directory in which a file describes a model."""
    return any(os.path.isfile(os.path.join(path, name)) for name in _DESCRIPTIONS)


def not_a_file(path: str) -> str | None:
    """Return why a path that was to be opened as an ``.aibit`` file is none, and what to do, if it is known."""
    if os.path.isdir(path):
        if describes_model(path):
            return f"is a directory with a model, not a file; make one of it: aibit convert {path} -o OUT.aibit"
        return not_a_model(path) or "is a directory; give a file"
    return what_is_wrong(path) if os.path.lexists(path) else None


def not_a_model(path: str) -> str | None:
    """Return why an existing file or directory is no source of a model, and what to do; ``None`` if it is not known."""
    if os.path.isfile(path):
        if path.endswith(_WEIGHTS):
            folder = os.path.dirname(path) or "."
            return f"is one file of weights; give the directory, with config.json beside them: {folder}"
        return None
    if not os.path.isdir(path):
        return "is neither a file nor a directory"
    names = sorted(os.listdir(path))
    if not names:
        return "is an empty directory"
    if snapshots := _folders(os.path.join(path, "snapshots")):
        return f"is a model in the hub's cache; give one of its snapshots: {_listed(snapshots)}"
    if models := [os.path.join(path, name) for name in names if name.startswith("models--")]:
        return f"is the hub's cache; give a snapshot of one of its models: {_listed(models)}"
    for name in names:
        if name in _DESCRIPTIONS and (wrong := what_is_wrong(os.path.join(path, name))):
            return f"{name} {wrong}"
    if inner := [found for found in _folders(path) if describes_model(found)]:
        return f"has no config.json; give a directory that has: {_listed(inner)}"
    if models := [os.path.join(path, name) for name in names if name.endswith((".gguf", ".aibit"))]:
        return f"is a directory; give one of its files: {_listed(models)}"
    if any(name.endswith(_WEIGHTS) for name in names):
        return "has weights and no config.json; put the model's config.json beside them"
    return None


def _pointer(path: str) -> str | None:
    """Return what to do if a file is what a clone without Git LFS leaves in the place of a large one."""
    try:
        if os.path.getsize(path) > _MOST:
            return None
        with open(path, "rb") as file:
            text = file.read(_MOST)
    except OSError:
        return None  # whoever reads it finds out
    if not text.startswith(_POINTER):
        return None
    size = _POINTER_SIZE.search(text)
    what = f"{int(size[1])} bytes" if size else "unknown size"
    return f"is a Git LFS pointer to a file of {what}, not that file; fetch it: git lfs install, then git lfs pull"


def _folders(path: str) -> list[str]:
    if not os.path.isdir(path):
        return []
    return [full for name in sorted(os.listdir(path)) if os.path.isdir(full := os.path.join(path, name))]


def _listed(paths: list[str]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
