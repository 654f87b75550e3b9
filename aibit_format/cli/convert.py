"""Runs ``aibit convert``: converts a model to an ``.aibit`` file, or shows how it would."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ..errors import WriteError
from ..file import sharded_reader
from ..file.ranks import ALONE, of_torchrun
from ..hf.tokenizer_files import REASON_DOCUMENT, why_no_tokenizer
from ..io.atomic import AtomicFolder
from . import arguments
from .output import ProgressBar, emit, size, table

if TYPE_CHECKING:
    from ..convert.conversion import Conversion
    from ..convert.convert import Report
    from ..torch.evaluate.search import Found

_MEASURED = 4096  # tokens of a text that --measure predicts at most


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument(
        "source", metavar="SRC",
        help="a Hugging Face directory (plain, bitsandbytes, GPTQ, AWQ), a .gguf file, or an .aibit file",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--scheme", metavar="SCHEME",
        help="scheme of the Linear weights, with parameters after commas: nf4,block_size=128; or one of llama.cpp's "
        "mixtures: q4_k_m, q5_k_m, iq4_xs; int8-auto chooses between int8-absmax and int8-zp for each layer; "
        "int8-dynamic and int8-static compute with 8-bit inputs, too, the latter with --calibrate (default: int8, or "
        "'keep' if the source is already quantized)",
    )  # fmt: skip
    parser.add_argument(
        "--tensor", metavar="REGEX=SCHEME", action="append", default=[], type=arguments.rule,
        help="another scheme for tensors whose name contains a match of REGEX; the last rule that matches wins",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", metavar="FILE", help="TOML with 'scheme', 'transform' and '[tensors]'; kept in the output"
    )
    parser.add_argument(
        "--calibrate", metavar="FILE", action="append",
        help="statistics of activations, from aibit calibrate or llama.cpp (imatrix), or a text to take them from; "
        "'default' is the text that comes with this program; several texts by several --calibrate",
    )  # fmt: skip
    parser.add_argument(
        "--method", metavar="METHOD",
        help="gptq rounds weights by Hessians of activations, which --calibrate gives: groups of integers and GGUF's "
        "types; options after commas: gptq,damping=0.02,ordered=0",
    )  # fmt: skip
    parser.add_argument(
        "--transform", metavar="METHOD", action="append", default=[],
        help="rewrite the model first, without changing what it computes, so that less is lost: awq, smooth,alpha=0.5 "
        "(both need --calibrate) or rotate,seed=0; several by several --transform",
    )  # fmt: skip
    parser.add_argument(
        "--prune", metavar="WANTED",
        help="leave something out of the model before all that: layers=N, drop=N+N, channels=N, heads=N, experts=N, "
        "block=N, refit, with commas between them; see aibit prune",
    )  # fmt: skip
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
    parser.add_argument(
        "--measure", metavar="TEXT",
        help="predict a UTF-8 text with the result and with the source, and write perplexities and divergence into the "
        f"file (at most {_MEASURED} tokens; see aibit eval)",
    )  # fmt: skip
    parser.add_argument(
        "--graph", action="store_true", help="add the graph of what the model computes, for aibit run --graph"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--target-bits", type=float, metavar="BITS",
        help="search which weight gets which scheme, embeddings and head included, for so many bits a weight on "
        "average: what each loses in each scheme is measured on a text",
    )  # fmt: skip
    target.add_argument(
        "--target-size", type=arguments.size, metavar="SIZE", help="the same for a file of at most so many bytes (80MB)"
    )
    target.add_argument(
        "--target-kl", type=float, metavar="NATS",
        help="the same for the smallest file whose predictions diverge from the source's by at most so much a token",
    )  # fmt: skip
    parser.add_argument(
        "--candidates", metavar="SCHEMES",
        help="schemes to choose from, with spaces between them (default: GGUF's types of 2 to 8 bits, and groups of 2 "
        "to 4 bits)",
    )  # fmt: skip
    parser.add_argument(
        "--search-text", metavar="TEXT", help="what is predicted in the search (default: the text that comes with this)"
    )
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Convert and print a report, or print the plan."""
    args.source = arguments.local(args.source)
    if _target(args) is not None:
        return _searched(args)
    if args.candidates or args.search_text:
        args.parser.error("--candidates and --search-text are for --target-bits, --target-size and --target-kl")
    if not args.output and not args.dry_run:
        args.parser.error("give a path to write to: -o OUT (or --dry-run to see the plan)")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and args.measure:
        args.parser.error("--measure runs the model in one process; without it, measure the result with aibit eval")
    if args.graph and args.measure:
        args.parser.error("--graph and --measure each write the file anew: add the graph afterwards with aibit graph")
    if count > 1 and args.graph:
        args.parser.error("--graph records the model in one process; without it, add the graph with aibit graph")
    if count > 1 and not args.max_shard_size:
        args.parser.error(f"{count} ranks write shards, not one file: give --max-shard-size")
    from ..calibrate.files import is_statistics
    from ..calibrate.statistics import unreached
    from ..convert.convert import prepare
    from ..convert.convert import run as convert
    from ..convert.recipe import Recipe
    from ..formats.bind import listed
    from ..transform.prune.plan import Wanted
    from .silence import quiet_libraries

    if count > 1 and args.calibrate and not is_statistics(args.calibrate[0]):
        args.parser.error(f"{count} ranks would take statistics {count} times: make a file with aibit calibrate first")
    ranks = of_torchrun() if count > 1 and not args.dry_run else ALONE
    recipe = Recipe.of(args.scheme, args.tensor, args.recipe, args.method, args.transform)  # before slow imports
    wanted = None if args.prune is None else Wanted.parse(args.prune)
    quiet_libraries()
    with ranks.together(), ProgressBar("calibrating", "{} steps".format) as progress:
        conversion = prepare(
            args.source,
            recipe,
            args.architecture,
            calibration=args.calibrate,
            on_progress=progress.update,
            jobs=args.jobs,
            prune=wanted,
        )
    if conversion.statistics is not None and (left := conversion.statistics.unreached):
        print(f"aibit: {unreached(left)}", file=sys.stderr)
    for note in conversion.notes:
        print(f"aibit: {note}", file=sys.stderr)
    with ProgressBar("converting") as progress, ranks.together():
        if args.dry_run:
            _show_plan(conversion, args.json)
            return 0
        update = progress.update if ranks.rank == 0 else None
        if args.measure:
            report = _measured(
                args, lambda path: convert(conversion, path, False, update, args.jobs, args.max_shard_size)
            )
        elif args.graph:
            report = _with_graph(
                args, lambda path: convert(conversion, path, False, update, args.jobs, args.max_shard_size)
            )
        else:
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
    chosen = any(scheme and scheme.text in (t.scheme, t.replaced) for t in report.tensors)
    if scheme and scheme.lossy and not report.choices and not chosen:
        what = f"transformers quantizes none of the weights of {conversion.about.get('model.architecture')}"
        print(f"aibit: nothing is {scheme.text}: {what}; name some: --tensor 'REGEX={scheme.text}'", file=sys.stderr)
    for wanted, count in Counter((t.replaced, t.scheme) for t in report.tensors if t.replaced).items():
        what = f"rows are no whole blocks of {wanted[0]} in {count} tensors, which are {wanted[1]} instead"
        print(f"aibit: {what}", file=sys.stderr)
    for why, count in Counter(t.fallback for t in report.tensors if t.fallback).items():
        names = listed([t.name for t in report.tensors if t.fallback == why])
        print(
            f"aibit: {args.method or 'the method'} is not used for {count} tensors, as {why}: {names}", file=sys.stderr
        )
    for (text, why), count in Counter(
        (p.tensor.scheme.text, p.uncalibrated) for p in conversion.tensors if p.uncalibrated
    ).items():
        print(f"aibit: {count} tensors are {text} instead: {why}", file=sys.stderr)
    if report.quantized_bytes > report.original_bytes:
        what = f"the weights take {size(report.quantized_bytes)} here, and {size(report.original_bytes)} in the source"
        print(f"aibit: {report.path}: larger than its source: {what}", file=sys.stderr)
    _show_report(report, args.json)
    return 0


def _target(args: argparse.Namespace) -> float | None:
    return next((each for each in (args.target_bits, args.target_size, args.target_kl) if each is not None), None)


def _searched(args: argparse.Namespace) -> int:
    """Search, convert, and print what was found."""
    others = {
        "--scheme": args.scheme, "--tensor": args.tensor, "--recipe": args.recipe, "--dry-run": args.dry_run,
        "--measure": args.measure, "--graph": args.graph, "--max-shard-size": args.max_shard_size,
        "--prune": args.prune, "--transform": args.transform,
    }  # fmt: skip
    if unwanted := [name for name, value in others.items() if value]:
        args.parser.error(f"a search chooses the schemes and measures the result: leave out {', '.join(unwanted)}")
    if not args.output:
        args.parser.error("give a path to write to: -o OUT")
    from ..calibrate.text import read
    from ..torch.evaluate.search import Target, search
    from ..torch.evaluate.sensitivity import CANDIDATES
    from .silence import quiet_libraries

    target = Target(args.target_bits, args.target_size, args.target_kl)
    if os.path.lexists(args.output) and not args.force:
        raise WriteError(f"{args.output}: exists; --force replaces it")
    quiet_libraries()
    text = "".join(read([args.search_text] if args.search_text else []).parts)
    candidates = tuple(args.candidates.split()) if args.candidates else CANDIDATES
    with ProgressBar("measuring", "{} weights".format) as measuring, ProgressBar("converting") as progress:
        found = search(
            args.source, args.output, target, text, candidates=candidates, calibration=args.calibrate,
            architecture=args.architecture, overwrite=args.force, jobs=args.jobs, on_search=measuring.update,
            on_progress=progress.update, method=args.method,
        )  # fmt: skip
    _show_found(found, args.json)
    return 0


def _show_found(found: Found, as_json: bool) -> None:
    if as_json:
        emit({
            "report": asdict(found.report), "bits": found.bits, "predicted_kl": found.predicted_kl, "kl": found.kl,
            "schemes": dict(zip(found.choices.names, found.chosen, strict=True)), "frontier": found.frontier,
        })  # fmt: skip
        return
    lines = [[f"{bits:.2f}", f"{kl:.5f}"] for bits, kl in found.corners()]
    print(table(["bits", "expected divergence"], lines, right=(0, 1)))
    print()
    print("weights: " + ", ".join(f"{count} {scheme}" for scheme, count in found.schemes.items()))
    print(f"{found.bits:.3f} bits a weight, divergence {found.kl:.5f} nats, expected {found.predicted_kl:.5f}")
    print(_totals(found.report.original_bytes, found.report.quantized_bytes))
    print(f"{found.report.path}: {size(found.report.file_bytes)}, root {found.report.root}")


def _measured(args: argparse.Namespace, convert: Callable[[str], Report]) -> Report:
    """Convert into a hidden folder beside the output, measure what came out, and write it with the figures."""
    from ..torch.evaluate.judge import Question
    from ..torch.evaluate.record import record

    question = Question(arguments.text(args.measure), limit=_MEASURED)
    if os.path.lexists(args.output) and not args.force:
        raise WriteError(f"{args.output}: exists; --force replaces it")
    with AtomicFolder(args.output) as folder, ProgressBar("measuring", "{} tokens".format) as progress:
        report = convert(os.path.join(folder.name, os.path.basename(args.output)))
        found, files = record(report.path, args.output, args.source, question, args.force, progress.update)
    apart = f"; divergence {found.divergence.mean:.6f} nats" if found.divergence else ""
    print(
        f"aibit: {args.measure}: {found.tokens:,} tokens predicted, perplexity {found.perplexity:.4f}, of the source "
        f"{found.reference_perplexity:.4f}{apart}",
        file=sys.stderr,
    )
    with sharded_reader.open(files[0]) as file:
        return replace(report, path=files[0], files=tuple(files), file_bytes=file.size, root=file.root)


def _with_graph(args: argparse.Namespace, convert: Callable[[str], Report]) -> Report:
    """Convert into a hidden folder beside the output, record what came out, and write it with its graph."""
    from ..torch.record.store import add_graph

    if os.path.lexists(args.output) and not args.force:
        raise WriteError(f"{args.output}: exists; --force replaces it")
    with AtomicFolder(args.output) as folder:
        report = convert(os.path.join(folder.name, os.path.basename(args.output)))
        program, files = add_graph(report.path, args.output, overwrite=args.force)
    print(f"aibit: graph of {len(program.nodes)} steps, up to {program.positions} tokens", file=sys.stderr)
    with sharded_reader.open(files[0]) as file:
        return replace(report, path=files[0], files=tuple(files), file_bytes=file.size, root=file.root)


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
    if report.choices:
        _show_choices(report)
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


def _show_choices(report: Report) -> None:
    """Print what int8-auto chose for each layer, and what came of it."""
    rows = [
        [c.name, f"{c.mean:.4g}", f"{c.std:.4g}", f"{c.score:.4f}", c.mode, f"{c.scale:.6g}", str(c.zero_point)]
        for c in report.choices
    ]
    print(table(["tensor", "mean", "std", "score", "mode", "scale", "zero point"], rows, right=(1, 2, 3, 5, 6)))
    print()
    sizes = [size(report.original_bytes), size(report.quantized_bytes)]
    saved = [f"{report.compression_ratio:.2f}", size(report.memory_saved_bytes)]
    print(table(["original", "quantized", "ratio", "saved"], [[*sizes, *saved]], right=(0, 1, 2, 3)))
    print()


def _totals(original: int, stored: int) -> str:
    ratio = original / stored if stored else 1.0
    saved = size(original - stored)
    return f"original {size(original)}, quantized {size(stored)}, ratio {ratio:.2f}, memory saved {saved}"
