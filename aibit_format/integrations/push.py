"""Puts a file and its card into a repository on a Hugging Face hub."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ..container.signatures import SUFFIX
from ..errors import WriteError
from ..file import sharded_reader
from ..file.sharded_reader import whole
from ..io import hub
from .card import MARK, card

__all__ = ["Pushed", "push"]

_CARD = "README.md"


class Pushed(NamedTuple):
    """Says what became of a push: the commit's address, the files in it, and whether the card is a new one."""

    url: str
    files: list[str]
    card: bool


def push(
    path: str | os.PathLike[str],
    repository: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    message: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    replace_card: bool = False,
) -> Pushed:
    """Upload a file, or all shards of a model, and a card, in one commit; the repository is made if there is none.

    Every byte is checked first. A detached signature beside the file goes with it. A card that somebody wrote is kept.

    Args:
        path: the file, or the first shard.
        repository: its name on the hub, ``owner/name``; who may write there is a matter of ``hf auth login``.
        revision: the branch; ``main`` by default.
        private: make a new repository private.
        create_pr: open a pull request instead of writing to the branch.
        message: of the commit.
        base_model, license: for the card, see ``card``.
        replace_card: replace also a card that somebody wrote.

    Raises:
        FormatError: the file is not valid, or damaged.
        WriteError: the name is none of a repository, or the hub refuses.
        MissingPackageError: ``huggingface_hub`` is not installed.
    """
    name = os.fspath(path)
    found = hub.parse(repository if repository.startswith(hub.SCHEME) else hub.SCHEME + repository)
    if found is None or found.file or found.revision:
        raise WriteError(f"{repository!r} is not owner/name")
    with sharded_reader.open(name, "full") as file:
        text = card(whole(file), base_model=base_model, license=license)
        shards = [str(part.path) for part in file.parts]
    library = hub.library(found)
    api = library.HfApi(endpoint=hub.endpoint())
    with hub.explained(found, WriteError):
        api.create_repo(found.repository, private=private, exist_ok=True)
        ours = replace_card or _is_ours(library, found.repository, revision)
        files = {
            os.path.basename(each): each for shard in shards for each in (shard, shard + SUFFIX) if os.path.isfile(each)
        }
        operations = [library.CommitOperationAdd(inside, each) for inside, each in files.items()]
        if ours:
            operations.append(library.CommitOperationAdd(_CARD, text.encode()))
        made = api.create_commit(
            found.repository, operations, revision=revision, create_pr=create_pr,
            commit_message=message or f"{os.path.basename(name)}, written by aibit",
        )  # fmt: skip
    return Pushed(str(made.pr_url or made.commit_url), [*files, *([_CARD] if ours else [])], ours)


def _is_ours(library: Any, repository: str, revision: str | None) -> bool:
    """Tell whether a repository has no card that somebody wrote."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = library.hf_hub_download(repository, _CARD, revision=revision, endpoint=hub.endpoint())
    except EntryNotFoundError:
        return True
    with open(path, encoding="utf-8", errors="replace") as file:
        return MARK in file.read()
