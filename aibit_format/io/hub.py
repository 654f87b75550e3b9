"""Finds models on a Hugging Face hub: a name becomes a path in the local cache, or what ``Ranged`` reads by ranges.

A name is ``hf://owner/name[/file][@revision]``, an address of the hub's site, or ``owner/name`` where no such path
exists. Downloads are those of ``huggingface_hub``, with its cache, endpoint and tokens; one that broke off goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from ..errors import AibitError, MissingPackageError, SourceError, told_by

__all__ = ["Name", "endpoint", "explained", "library", "local", "origin_of", "parse", "remote"]

SCHEME = "hf://"
_PART = r"[A-Za-z0-9][\w.\-]{0,95}"
_ID = re.compile(rf"({_PART}/{_PART})(?:@([^@\s]+))?", re.ASCII)
_NAME = re.compile(rf"hf://({_PART}/{_PART})(?:@(refs/\w+/[^/@\s]+|[^@/\s]+))?(?:/([^@\s]+))?(?:@([^@\s]+))?", re.ASCII)
_PAGE = re.compile(rf"/({_PART}/{_PART})(?:/(?:resolve|blob|tree|raw)/([^/]+)(?:/(.+))?)?/?", re.ASCII)
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.[a-z]+)")

# Weights in the order in which a directory's source looks for them; the first that is there is downloaded.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "consolidated*.safetensors", "consolidated*.pth")
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_FILES = (".aibit", ".gguf")

Progress = Callable[[int, int, str], None]


class Name(NamedTuple):
    """Name a repository, perhaps one of its files, and perhaps a branch, a tag or a commit."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return SCHEME + self.repository + (f"/{self.file}" if self.file else "") + (
            f"@{self.revision}" if self.revision else ""
        )  # fmt: skip


def parse(text: str) -> Name | None:
    """Return what a text names on the hub; ``None`` if it is a path or the address of something else.

    Raises:
        SourceError: it begins with ``hf://`` and goes on otherwise than a name does.
    """
    if text.startswith(SCHEME):
        found = _NAME.fullmatch(text)
        if found is None or (found[2] and found[4]) or not _plain(found[3]):
            raise SourceError(f"{text!r} is not hf://owner/name[/file][@revision]")
        return Name(found[1], found[3], found[2] or found[4])
    if text.startswith(("https://", "http://")):
        address, hub = urlsplit(text), urlsplit(endpoint())
        found = _PAGE.fullmatch(unquote(address.path)) if address.netloc == hub.netloc else None
        return Name(found[1], found[3], found[2]) if found and _plain(found[3]) else None
    found = _ID.fullmatch(text)
    if found is None or found[1].endswith(_FILES) or os.path.lexists(text):
        return None
    return Name(found[1], None, found[2])


def origin_of(path: str) -> Name | None:
    """Return the repository and the commit that a path in the hub's cache belongs to; ``None`` for other paths."""
    found = _SNAPSHOT.search(os.path.abspath(path).replace(os.sep, "/"))
    return Name(f"{found[1]}/{found[2]}", None, found[3]) if found else None


def local(path: str, *, on_progress: Progress | None = None) -> str:
    """Return the path of a model that is named on the hub, downloaded if the cache has it not; other paths unchanged.

    Of a repository all that a checkpoint needs is downloaded, once, in its first kind of weights; of a sharded file all
    shards; and a detached signature if there is one. Without a network, what the cache has is taken.

    Args:
        path: a name, see ``parse``; or a path, or the address of something that is not on the hub.
        on_progress: called with bytes done, all bytes, and the name of the file.

    Raises:
        SourceError: the hub has no such repository, revision or file, asks for permission, or cannot be reached.
        MissingPackageError: ``huggingface_hub`` is not installed.
    """
    name = parse(path)
    if name is None:
        return path
    if not path.startswith((SCHEME, "http")):
        try:
            return local(str(name), on_progress=on_progress)
        except (SourceError, MissingPackageError) as error:
            raise SourceError(f"{path}: no such file or directory; on the hub, {error}") from error
    hub = library(name)
    with explained(name):
        asked, (name, sizes) = name.revision, _look(hub, name)
        wanted, result = _wanted(name, list(sizes))
        done, total, found = 0, sum(sizes[file] or 0 for file in wanted), path
        for file in wanted:
            bar = partial(_Bar, None if on_progress is None else partial(_tell, on_progress, done, total, file))
            # The first by its branch, which makes the cache remember where that was, the others by its commit.
            revision = name.revision if done or sizes[file] is None else asked
            found = hub.hf_hub_download(name.repository, file, revision=revision, tqdm_class=bar, endpoint=endpoint())
            if (at := origin_of(found)) is not None and at.revision != name.revision:
                raise SourceError(f"{name}: there is a newer commit now, {at.revision}; say it again")
            done += sizes[file] or 0
    folder = found[: -len(wanted[-1])].rstrip(os.sep)
    return os.path.join(folder, result) if result else folder


def remote(path: str) -> str:
    """Return a file's name on the hub with its commit, as ``Ranged`` reads it without a download; others unchanged.

    Raises:
        SourceError: as in ``local``; or the repository holds no ``.aibit`` file, or several.
        MissingPackageError: ``huggingface_hub`` is not installed.
    """
    name = parse(path) if path.startswith(SCHEME) else None
    if name is None:
        return path
    hub = library(name)
    with explained(name):
        name, sizes = _look(hub, name)
        _, result = _wanted(name, list(sizes))
    if result is None:
        raise SourceError(f"{name}: a checkpoint, not a file; make one of it: aibit convert {name} -o OUT.aibit")
    return f"{SCHEME}{name.repository}@{name.revision}/{result}"


def _tell(on_progress: Progress, before: int, total: int, file: str, count: int) -> None:
    on_progress(min(before + count, total), total, file)


def _look(hub: Any, name: Name) -> tuple[Name, dict[str, int | None]]:
    """Return a name with its commit, and the sizes of its files; without a network, the files in the cache."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = hub.HfApi(endpoint=endpoint()).model_info(name.repository, revision=name.revision, files_metadata=True)
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500:
            raise  # an answer, and not the lack of one
        folder = _cached(hub, name)
        files = [
            os.path.relpath(os.path.join(where, file), folder)
            for where, _, inside in os.walk(folder)
            for file in inside
        ]
        return name._replace(revision=os.path.basename(folder)), dict.fromkeys(sorted(files))
    return name._replace(revision=info.sha), {each.rfilename: each.size for each in info.siblings or ()}


def _cached(hub: Any, name: Name) -> str:
    """Return the folder in which the cache has some or all files of a commit."""
    try:
        return hub.snapshot_download(name.repository, revision=name.revision, local_files_only=True)
    except Exception as error:
        # Of a repository of which some files were asked for, the cache has those, and newer libraries say so.
        if found := getattr(error, "snapshot_path", None):
            return str(found)
        raise


def _wanted(name: Name, files: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the files to download, at least one, and the one that is the model: ``None`` for their directory."""
    if name.file is None and not {"config.json", "params.json"} & set(files):
        found = [file for file in files if file.endswith(_FILES) and _is_first(file)]
        if len(found) != 1:
            listed = "; name one: " + ", ".join(map(str, (name._replace(file=each) for each in found[:8])))
            raise SourceError(f"{name}: holds {len(found)} models in a file of their own{listed if found else ''}")
        name = name._replace(file=found[0])
    if name.file is not None:
        if name.file not in files:
            raise SourceError(f"{name}: the repository has no such file; it has {_listed(files)}")
        shard = _SHARD.fullmatch(name.file)
        shards = [f"{shard[1]}-{i:05d}-of-{shard[2]}{shard[3]}" for i in range(1, int(shard[2]) + 1)] if shard else []
        missing = [each for each in shards if each not in files]
        if missing:
            raise SourceError(f"{name}: {len(missing)} of {len(shards)} shards are not there; the first: {missing[0]}")
        signature = [name.file + ".sig"] if name.file + ".sig" in files else []
        return [*signature, *(shards or [name.file])], name.file
    here = [file for file in files if "/" not in file]
    kinds = ([file for file in here if fnmatch(file, kind)] for kind in _WEIGHTS)
    weights = next((found for found in kinds if found), [])
    return [*(file for file in here if any(fnmatch(file, kind) for kind in _BESIDE)), *weights], None


def _is_first(file: str) -> bool:
    shard = _SHARD.fullmatch(file)
    return shard is None or f"-00001-of-{shard[2]}" in file


def _listed(files: Sequence[str]) -> str:
    more = len(files) - 8
    return ", ".join(files[:8]) + (f" and {more} more" if more > 0 else "") if files else "none"


def _plain(file: str | None) -> bool:
    return file is None or not any(part in ("", ".", "..") for part in file.split("/"))


def endpoint() -> str:
    """Return the address of the hub."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def library(name: Name) -> Any:
    """Return ``huggingface_hub``.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingPackageError(f"{name}: needs huggingface_hub: pip install 'aibit-format[hub]'") from error
    return huggingface_hub


class _Bar:
    """Stand in for the bar of tqdm, of which ``huggingface_hub`` calls these: what it counts goes to a callable."""

    def __init__(self, report: Callable[[int], None] | None, *, initial: int = 0, **_: Any) -> None:
        self._report, self._count = report, initial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, count: float | None = 1) -> None:
        """Count bytes."""
        self._count += int(count or 0)
        if self._report is not None:
            self._report(self._count)

    def refresh(self, *_: object, **__: object) -> None:
        """Do nothing."""

    close = set_description = set_postfix_str = refresh


@contextmanager
def explained(name: Name, kind: type[AibitError] = SourceError) -> Iterator[None]:
    """Turn what ``huggingface_hub`` raises inside the context into errors of a kind that say what to do."""
    from huggingface_hub import errors

    reasons: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "is gated: accept its terms on the hub, and log in with: hf auth login"),
        (errors.RepositoryNotFoundError, "is not there, or private: check the name, or log in with: hf auth login"),
        (errors.RevisionNotFoundError, "has no such revision"),
        (errors.LocalEntryNotFoundError, "is not in the cache, and the hub cannot be reached"),
        (errors.OfflineModeIsEnabled, "is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"),
        (errors.EntryNotFoundError, "has no such file"),
    )
    try:
        yield
    except AibitError:
        raise
    except Exception as error:  # of its own kinds, its HTTP library's, and the file system's
        reason = next(
            (text for kind, text in reasons if isinstance(error, kind)), f"the hub's answer: {told_by(error)}"
        )
        raise kind(f"{name}: {reason} ({endpoint()})") from error
