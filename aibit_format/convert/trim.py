"""Converts a model with a smaller vocabulary: which tokens are kept, and what that does to texts and to the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..calibrate.text import read, tokenizer_of
from ..container.vocabulary import Kept
from ..container.vocabulary import kept as kept_of
from ..errors import RecipeError
from ..file import sharded_reader
from ..file.progress import Progress
from ..formats.aibit import Aibit
from ..formats.files import read_file
from ..formats.models import meta_model_of, missing_dtype
from ..formats.sources import Source, open_source
from ..io.mapped import Path
from ..transform.vocabulary.choose import MULTIPLE, Wanted, choose
from ..transform.vocabulary.scripts import chosen as chosen_scripts
from ..transform.vocabulary.source import Trimmed, needed, size_of
from ..transform.vocabulary.texts import Figures, check_same, compared, counted, of_template
from ..transform.vocabulary.tokenizer import tokenizer_of as cuttable
from .convert import Report, convert
from .recipe import KEEP

_MAX_IDS = 1 << 28  # bytes of a file of ids


@dataclass(frozen=True)
class Trimming:
    """Describe a model with a smaller vocabulary, before it is written."""

    source: Trimmed
    rows_before: int
    reasons: dict[str, int]  # why rows are kept -> how many
    figures: Figures | None  # of the texts that it was measured on
    notes: tuple[str, ...]

    @property
    def kept(self) -> Kept:
        """Return the map from new ids to those of the original."""
        return self.source.kept


@dataclass(frozen=True)
class TrimReport:
    """Report what trimming did: rows before and after, why they were kept, bytes of their tensors, and texts.

    ``rows_before`` is of the source; ``kept.size`` of the original, from which the source may have been cut before.
    """

    kept: Kept
    rows_before: int
    reasons: dict[str, int]
    bytes_before: int
    bytes_after: int
    figures: Figures | None
    conversion: Report

    @property
    def rows(self) -> int:
        """Return how many rows are left."""
        return len(self.kept.ids)


def prepare(
    source: Any, texts: Sequence[Path] = (), *, min_count: int = 1, coverage: float | None = None,
    scripts: Sequence[str] = (), languages: Sequence[str] = (), ids: Path | Sequence[int] | np.ndarray | None = None,
    multiple: int = MULTIPLE, measure: Sequence[Path] = (), architecture: str | None = None, tokenizer: Any = None,
) -> Trimming:  # fmt: skip
    """Choose what is kept, and describe the smaller model; see ``trim`` for arguments and errors."""
    opened = open_source(source, tokenizer)
    if opened.no_model:
        raise RecipeError(f"{opened.path}: no model whose vocabulary could be cut: {opened.no_model}")
    wanted_scripts = chosen_scripts(scripts, languages)
    model = meta_model_of(opened, architecture, missing_dtype(opened))
    built = tokenizer_of(opened, ", as a vocabulary is cut together with its tokenizer")
    document, size = cuttable(opened.documents, built), size_of(model)
    wanted = Wanted(
        counted(built, read([str(path) for path in texts]).parts, size) if texts else None, min_count, coverage,
        wanted_scripts, None if ids is None else _ids(ids),
    )  # fmt: skip
    found = choose(document, size, wanted, sorted(needed(opened, model) | of_template(built)), multiple)
    trimmed = Trimmed(opened, model, document, found.kept, _before(opened))
    after = tokenizer_of(trimmed, "")
    check_same(built, after, found.kept, opened.path)
    measured = read([str(path) for path in measure or texts]).parts if measure or texts else ()
    figures = compared(built, after, found.kept, measured) if measured else None
    return Trimming(trimmed, size, found.reasons, figures, tuple(_notes(opened)))


def trim(
    source: Any, path: Path, texts: Sequence[Path] = (), *, min_count: int = 1, coverage: float | None = None,
    scripts: Sequence[str] = (), languages: Sequence[str] = (), ids: Path | Sequence[int] | np.ndarray | None = None,
    multiple: int = MULTIPLE, measure: Sequence[Path] = (), architecture: str | None = None, tokenizer: Any = None,
    scheme: str | None = None, overwrite: bool = False, on_progress: Progress | None = None, **options: Any,
) -> TrimReport:  # fmt: skip
    """Write a model with a smaller vocabulary: fewer tokens, and fewer rows of its embeddings and head.

    What texts, scripts, languages or ids name is kept, and always special, added, byte and template tokens. Rows are
    cut out of planes as they are, without decoding. A text whose tokens are all kept has the same tokens as before,
    under new ids, and the model's logits are those of the kept rows, bit for bit; in other texts, smaller tokens or
    bytes stand for those that are gone.

    Args:
        source: as for ``convert``.
        path: the file to write.
        texts: files of text in UTF-8, whose tokens are kept.
        min_count: only tokens that come so often in them.
        coverage: only the most frequent that make up this share of them, above 0 to 1.
        scripts: keep tokens whose letters are of these: ``"latin"``, ``"cyrillic"``; see ``scripts.SCRIPTS``.
        languages: the scripts in which these are written, by codes of ISO 639-1.
        ids: keep these; numbers, or a file of them with spaces or line feeds between.
        multiple: of rows, up to which the next frequent tokens are kept.
        measure: texts to report on, by default ``texts``.
        architecture, tokenizer, overwrite, on_progress, options: as for ``convert``, which writes the file.
        scheme: in which weights are stored; by default as the source has them.

    Raises:
        RecipeError: nothing says what to keep, or a text keeps nothing, or an id is beyond the table.
        SourceError: the tokenizer, or a tensor, cannot be cut; the message says what to do.
        SchemeError, WriteError, LoadError: as for ``convert``.
    """
    trimming = prepare(
        source, texts, min_count=min_count, coverage=coverage, scripts=scripts, languages=languages, ids=ids,
        multiple=multiple, measure=measure, architecture=architecture, tokenizer=tokenizer,
    )  # fmt: skip
    return run(
        trimming, path, scheme, overwrite=overwrite, on_progress=on_progress, architecture=architecture, **options
    )


def run(trimming: Trimming, path: Path, scheme: str | None = None, **options: Any) -> TrimReport:
    """Write the file that ``prepare`` has described; ``options`` are those of ``convert``."""
    report = convert(trimming.source, path, scheme or KEEP, **options)
    report = replace(report, notes=(*report.notes, *trimming.notes))
    source = trimming.source
    return TrimReport(
        trimming.kept, trimming.rows_before, trimming.reasons, source.before, source.after, trimming.figures, report
    )


def undo_ids(path: Path, ids: Any) -> np.ndarray:
    """Return the ids in the original vocabulary, i64, of ids in the one of a file that was trimmed.

    Raises:
        RecipeError: its vocabulary is whole; or an id is negative.
    """
    old = np.asarray(ids, np.int64)
    if (old < 0).any():
        raise RecipeError(f"id {old[old < 0][0]}: ids are not negative")
    return map_of(path).old(old)


def new_ids(path: Path, ids: Any) -> np.ndarray:
    """Return the ids in the vocabulary of a file that was trimmed, i64, of ids in the original; -1 for what is gone.

    Raises:
        RecipeError: its vocabulary is whole.
    """
    return map_of(path).new(ids)


def map_of(path: Path) -> Kept:
    """Return the map of a file that was trimmed.

    Raises:
        RecipeError: its vocabulary is whole.
    """
    with sharded_reader.open(path) as file:
        found = kept_of(file.metadata, file.documents)
    if found is None:
        raise RecipeError(f"{path}: its vocabulary is whole: ids are those of the original")
    return found


def read_ids(path: Path) -> np.ndarray:
    """Read a file of ids, whole numbers with spaces, commas or line feeds between; returns i64.

    Raises:
        RecipeError: something else is in it.
    """
    text = read_file(str(path), _MAX_IDS).decode("utf-8", "replace").replace(",", " ").split()
    wrong = next((word for word in text if not (word.removeprefix("-").isdecimal() and len(word) < 19)), None)
    if wrong is not None:
        raise RecipeError(f"{path}: {wrong[:80]!r} is no id; a file of ids is whole numbers with spaces between")
    return np.array([int(word) for word in text], np.int64)


def _ids(ids: Path | Sequence[int] | np.ndarray) -> np.ndarray:
    return read_ids(ids) if hasattr(ids, "__fspath__") or isinstance(ids, str) else np.asarray(ids, np.int64)  # type: ignore[arg-type]


def _before(source: Source) -> Kept | None:
    """Return what the source itself has kept of an original."""
    return kept_of(source.metadata, source.documents)


def _notes(source: Source) -> list[str]:
    """Say what is lost, other than tokens."""
    if isinstance(source, Aibit) and source.signed:
        return ["signatures of the source are not those of this file, and were left out: sign it again (aibit sign)"]
    return []
