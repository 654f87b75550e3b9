"""Compiles a model by ``torch.compile``, and keeps what the compiler makes for the next start.

It is kept in a folder of the user's own, and not beside the file: torch reads its cache by pickle, and what came with a
model from elsewhere must not run. The folder's name is made of the file's root digest, of versions and of the kind of
processor, so that nothing is used for another model, library or machine.
"""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from typing import Any

import torch
import transformers

from ..._version import __version__
from ...errors import LoadError
from ...file.sharded_reader import Opened

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def cache_folder(file: Opened) -> str:
    """Return the folder for what a compiler makes of a file's model; it is made if it is not there.

    It is ``aibit/compiled/KEY`` in ``$XDG_CACHE_HOME``, ``~/.cache`` by default.

    Raises:
        LoadError: it cannot be made, or belongs to somebody else or can be written by others.
    """
    versions = (torch.__version__, transformers.__version__, __version__, torch.backends.cpu.get_cpu_capability())
    key = sha256("\n".join((file.root, *versions)).encode()).hexdigest()[:32]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "aibit", "compiled", key)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.stat(folder)
    except OSError as error:
        raise LoadError(f"{folder}: {error.strerror}: compiled code is kept there; set XDG_CACHE_HOME") from error
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise LoadError(
            f"{folder}: belongs to user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}: code in it would run; "
            "remove it, or set XDG_CACHE_HOME"
        )
    return folder


def compile_model(model: Any, file: Opened) -> None:
    """Have a model's forward compiled when it is first called, for any number of tokens.

    The compiler's cache is that of the process from then on: nothing else should compile in it.

    Raises:
        LoadError: the cache cannot be kept.
    """
    os.environ[_VARIABLE] = cache_folder(file)
    model.forward = torch.compile(model.forward, dynamic=True)
