"""Runs ``aibit trim``: writes a model with a smaller vocabulary, or maps ids between it and its original."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import arguments
from .output import ProgressBar, emit, size, table

if TYPE_CHECKING:
    from ..convert.trim import Trimming, TrimReport


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("source", metavar="SRC", help="what aibit convert takes: a directory, a .gguf or .aibit file")
    parser.add_argument("-o", "--output", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--text", metavar="FILE", nargs="+", action="extend", default=[], help="texts in UTF-8, whose tokens are kept"
    )
    parser.add_argument(
        "--min-count",
        type=arguments.positive,
        default=1,
        metavar="N",
        help="only tokens that come so often there (1)",
    )
    parser.add_argument(
        "--coverage", type=float, metavar="SHARE",
        help="only the most frequent tokens that make up this share of the texts (0.9999)",
    )  # fmt: skip
    parser.add_argument(
        "--script", metavar="NAME", nargs="+", action="extend", default=[],
        help="keep tokens whose letters are of these scripts: latin, cyrillic, han",
    )  # fmt: skip
    parser.add_argument(
        "--language", metavar="CODE", nargs="+", action="extend", default=[],
        help="keep the scripts in which these languages are written, by codes of ISO 639-1: en, ru, ja",
    )  # fmt: skip
    parser.add_argument("--ids", metavar="FILE", help="keep these: a file of ids with spaces or line feeds between")
    parser.add_argument(
        "--multiple", type=arguments.positive, default=64, metavar="N",
        help="rows are a multiple of this, filled up with the next frequent tokens (64)",
    )  # fmt: skip
    parser.add_argument(
        "--measure", metavar="FILE", nargs="+", action="extend", default=[],
        help="report on these texts (default: those of --text)",
    )  # fmt: skip
    parser.add_argument("--scheme", metavar="SCHEME", help="of the weights; see aibit convert (default: keep)")
    parser.add_argument("--architecture", metavar="CLASS", help="transformers class, if config.json names none")
    parser.add_argument("--dry-run", action="store_true", help="show what would be kept without writing")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--jobs", type=arguments.positive, metavar="N", help="threads (default: one per core)")
    parser.add_argument("--max-shard-size", metavar="SIZE", type=arguments.size, help="write shards; see aibit convert")
    mapped = parser.add_mutually_exclusive_group()
    mapped.add_argument(
        "--undo-ids", metavar="FILE", help="of a trimmed file SRC: print the original's ids for the ids in a file"
    )
    mapped.add_argument(
        "--map-ids", metavar="FILE", help="the other way: print SRC's ids for the original's, -1 where a token is gone"
    )
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Write the model and print a report; or print ids."""
    if args.undo_ids or args.map_ids:
        return _mapped(args)
    if not args.output and not args.dry_run:
        args.parser.error("give a path to write to: -o OUT (or --dry-run to see what would be kept)")
    from .silence import quiet_libraries

    args.source = arguments.local(args.source)
    quiet_libraries()
    from ..convert.trim import prepare
    from ..convert.trim import run as trim

    trimming = prepare(
        args.source, args.text, min_count=args.min_count, coverage=args.coverage, scripts=args.script,
        languages=args.language, ids=args.ids, multiple=args.multiple, measure=args.measure,
        architecture=args.architecture,
    )  # fmt: skip
    for note in trimming.notes:
        print(f"aibit: {note}", file=sys.stderr)
    if args.dry_run:
        _show(args, trimming, None)
        return 0
    with ProgressBar("converting") as progress:
        report = trim(
            trimming, args.output, args.scheme, overwrite=args.force, on_progress=progress.update, jobs=args.jobs,
            max_shard_size=args.max_shard_size, architecture=args.architecture,
        )  # fmt: skip
    _show(args, trimming, report)
    return 0


def _mapped(args: argparse.Namespace) -> int:
    """Print ids: those in a file, in the other vocabulary."""
    from ..convert.trim import new_ids, read_ids, undo_ids

    found = (undo_ids if args.undo_ids else new_ids)(args.source, read_ids(args.undo_ids or args.map_ids)).tolist()
    if args.json:
        emit({"path": args.source, "ids": found})
    else:
        print("\n".join(map(str, found)))
    return 0


def _show(args: argparse.Namespace, trimming: Trimming, report: TrimReport | None) -> None:
    figures, source = trimming.figures, trimming.source
    about: dict[str, Any] = {
        "rows_before": trimming.rows_before, "rows": len(trimming.kept.ids), "size": trimming.kept.size,
        "reasons": trimming.reasons, "tensors": source.cut, "bytes_before": source.before, "bytes": source.after,
        "texts": None if figures is None else asdict(figures),
    }  # fmt: skip
    if args.json:
        written = {} if report is None else {"path": report.conversion.path, "file_bytes": report.conversion.file_bytes}
        emit(about | written)
        return
    rows = [[why, f"{count:,}"] for why, count in trimming.reasons.items()]
    print(table(["kept for", "rows"], rows, right=(1,)))
    print()
    print(f"rows           {trimming.rows_before:,} -> {len(trimming.kept.ids):,} of {', '.join(source.cut)}")
    print(f"their bytes    {size(source.before)} -> {size(source.after)}")
    if figures is not None:
        before, after = (
            f"{count / max(figures.words, 1):.3f}" for count in (figures.tokens_before, figures.tokens_after)
        )
        print(f"tokens a word  {before} -> {after} in {figures.words:,} words")
        print(f"texts          {figures.changed:,} of {figures.texts:,} lines have other tokens")
    if report is not None:
        print(f"file           {report.conversion.path}: {size(report.conversion.file_bytes)}")
