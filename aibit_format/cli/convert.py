"""Runs ``aibit convert``: converts a model to an ``.aibit`` file, or shows how it would."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..file.ranks import ALONE, of_torchrun
from ..hf.tokenizer_files import REASON_DOCUMENT, why_no_tokenizer
from . import arguments
from .output import ProgressBar, emit, size, table

if TYPE_CHECKING:
    from ..convert.conversion import Conversion
    from ..convert.convert import Report

# Both the expression and the scheme may contain "=": (?=a)b=nf4,block_size=128.
_RULE = re.compile(r"(.+?)=([^=,]+(?:,[^=,]+(?:=[^=,]+)?)*)", re.DOTALL)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument(
        "source", metavar="SRC",
        help="a Hugging Face directory (plain, bitsandbytes, GPTQ, AWQ), a .gguf file, or an .aibit file",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--scheme", metavar="SCHEME",
        help="scheme of the Linear weights, with parameters after commas: nf4,block_size=128 (default: int8, or "
        "'keep' if the source is already quantized)",
    )  # fmt: skip
    parser.add_argument(
        "--tensor", metavar="REGEX=SCHEME", action="append", default=[], type=_rule,
        help="another scheme for tensors whose name contains a match of REGEX; the last rule that matches wins",
    )  # fmt: skip
    parser.add_argument("--recipe", metavar="FILE", help="TOML with 'scheme' and '[tensors]'; kept in the output")
    parser.add_argument("--dry-run", action="store_true", help="show the schemes and sizes without converting")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--architecture", metavar="CLASS",
        help="transformers class, if config.json names none or another is wanted; tensors that it does not use are "
        "left out",
    )  # fmt: skip
    parser.add_argument("--jobs", type=arguments.positive, metavar="N", help="threads (default: one per core)")
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=arguments.size,
        help="write shards OUT-00001-of-... of at most this many bytes of weights (5GB, 500MB); under torchrun, each "
        "rank writes some of them",
    )  # fmt: skip
    parser.set_defaults(parser=parser)


def _rule(text: str) -> tuple[str, str]:
    found = _RULE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=SCHEME")
    return found[1], found[2]


def run(args: argparse.Namespace) -> int:
    """Convert and print a report, or print the plan."""
    if not args.output and not args.dry_run:
        args.parser.error("give a path to write to: -o OUT (or --dry-run to see the plan)")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not args.max_shard_size:
        args.parser.error(f"{count} ranks write shards, not one file: give --max-shard-size")
    from ..convert.convert import prepare
    from ..convert.convert import run as convert
    from ..convert.recipe import Recipe
    from .silence import quiet_libraries

    ranks = of_torchrun() if count > 1 and not args.dry_run else ALONE
    with ProgressBar("converting") as progress, ranks.together():
        recipe = Recipe.of(args.scheme, args.tensor, args.recipe)  # reports its errors before slow imports
        quiet_libraries()
        conversion = prepare(args.source, recipe, args.architecture)
        if args.dry_run:
            _show_plan(conversion, args.json)
            return 0
        update = progress.update if ranks.rank == 0 else None
        report = convert(conversion, args.output, args.force, update, args.jobs, args.max_shard_size, ranks)
    if ranks.rank:
        return 0  # the first rank reports for all
    for key in report.dropped_keys:
        print(f"aibit: left out: {key}", file=sys.stderr)
    if conversion.source.no_model:
        print(f"aibit: tensors alone are stored, without a model: {conversion.source.no_model}", file=sys.stderr)
    elif REASON_DOCUMENT in conversion.source.documents and (why := why_no_tokenizer(conversion.source.documents)):
        print(f"aibit: {report.path}: {why}", file=sys.stderr)
    if report.unused:
        print(f"aibit: left out, because the model does not use it: {', '.join(report.unused)}", file=sys.stderr)
    scheme = conversion.recipe.scheme
    if scheme and scheme.lossy and not any(t.scheme == scheme.text for t in report.tensors):
        what = f"transformers quantizes none of the weights of {conversion.about.get('model.architecture')}"
        print(f"aibit: nothing is {scheme.text}: {what}; name some: --tensor 'REGEX={scheme.text}'", file=sys.stderr)
    if report.quantized_bytes > report.original_bytes:
        what = f"the weights take {size(report.quantized_bytes)} here, and {size(report.original_bytes)} in the source"
        print(f"aibit: {report.path}: larger than its source: {what}", file=sys.stderr)
    _show_report(report, args.json)
    return 0


def _show_plan(conversion: Conversion, as_json: bool) -> None:
    rows = [
        {
            "name": p.tensor.name, "shape": list(p.tensor.shape), "from": p.origin.text,
            "scheme": p.tensor.scheme.stated.text,
            "original_bytes": p.source_bytes, "bytes": p.stored_bytes, "alias_of": p.tensor.alias_of,
        }
        for p in conversion.tensors
    ]  # fmt: skip
    if as_json:
        emit({
            "architecture": conversion.about.get("model.architecture"),
            "original_bytes": conversion.original_bytes,
            "quantized_bytes": conversion.stored_bytes, "tensors": rows, "unused": conversion.unused,
        })  # fmt: skip
        return
    lines = [
        [r["name"], "x".join(map(str, r["shape"])), r["from"], f"= {r['alias_of']}" if r["alias_of"] else r["scheme"],
         size(r["original_bytes"]), size(r["bytes"])]
        for r in rows
    ]  # fmt: skip
    print(table(["tensor", "shape", "from", "scheme", "original", "stored"], lines, right=(4, 5)))
    print()
    print(_totals(conversion.original_bytes, conversion.stored_bytes))


def _show_report(report: Report, as_json: bool) -> None:
    if as_json:
        emit({
            **asdict(report), "compression_ratio": report.compression_ratio,
            "memory_saved_bytes": report.memory_saved_bytes,
        })  # fmt: skip
        return
    lossy = [t for t in report.tensors if t.error is not None]
    rows = [
        [t.name, t.scheme, size(t.quantized_bytes), f"{e.relative_rms:.3%}", f"{e.largest:.3g}",
         f"{e.signal_to_noise_db:.1f} dB"]
        for t in lossy if (e := t.error)
    ]  # fmt: skip
    if rows:
        print(table(["tensor", "scheme", "stored", "rms error", "largest", "signal/noise"], rows, right=(2, 3, 4, 5)))
        print()
    aliases = sum(t.alias_of is not None for t in report.tensors)
    kept = sum(t.kept for t in report.tensors)
    exact = len(report.tensors) - len(lossy) - kept - aliases
    counts = {"quantized": len(lossy), "kept as they were quantized": kept, "stored exactly": exact, "tied": aliases}
    print("tensors: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count))
    print(_totals(report.original_bytes, report.quantized_bytes))
    if left := sum(report.unquantized.values()):
        print(f"not quantized: {size(left)}, {left / report.quantized_bytes:.1%} of what is stored:")
        for reason, count in report.unquantized.items():
            print(f"  {size(count)}: {reason}")
    files = f" in {len(report.files)} shards" if len(report.files) > 1 else ""
    print(f"{report.path}: {size(report.file_bytes)}{files} in {report.seconds:.1f} s, root {report.root}")


def _totals(original: int, stored: int) -> str:
    ratio = original / stored if stored else 1.0
    saved = size(original - stored)
    return f"original {size(original)}, quantized {size(stored)}, ratio {ratio:.2f}, memory saved {saved}"
