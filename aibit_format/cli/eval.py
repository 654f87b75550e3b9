"""Runs ``aibit eval``: measures how well models predict a text, how far they are from a reference, and their speed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import arguments
from .output import ProgressBar, emit, size, table

if TYPE_CHECKING:
    from ..torch.evaluate.judge import Verdict


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("files", metavar="MODEL", nargs="+", help="an .aibit or GGUF file, or a directory")
    parser.add_argument("--text", metavar="TEXT", help="a UTF-8 text file, predicted token by token")
    parser.add_argument(
        "--ref", metavar="MODEL",
        help="the model to compare with, or its predictions as --save-logits has kept them (.safetensors)",
    )  # fmt: skip
    parser.add_argument("--save-logits", metavar="FILE", help="keep the predictions of --ref in this file")
    parser.add_argument("--force", action="store_true", help="replace the file of --save-logits")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a window (512, if the model takes as many)")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens between starts of windows (half the context)")
    parser.add_argument("--limit", type=arguments.positive, metavar="N", help="use only the first N tokens of the text")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weight-only", action="store_true", help="do not quantize inputs; see aibit run")
    parser.add_argument("--tasks", metavar="NAME,...", help="run these tasks of lm-eval, which must be installed")
    parser.add_argument("--task-folder", metavar="DIR", help="a folder with descriptions of more tasks")
    parser.add_argument("--task-limit", type=arguments.positive, metavar="N", help="use only N examples of each task")
    parser.add_argument(
        "--batch", type=arguments.positive, default=1, metavar="N", help="requests of tasks at once (1)"
    )
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Predict the text with each model, and print the figures."""
    context, stride = args.context, args.stride
    if (context is not None and context < 2) or (args.limit is not None and args.limit < 2):
        args.parser.error("--context and --limit must be 2 or more")
    if stride is not None and (context is None or not 1 <= stride <= context):
        args.parser.error("--stride goes with --context, and is from 1 to as many tokens")
    if args.text is None and (args.tasks is None or args.ref is not None):
        args.parser.error("say what to measure: --text TEXT, or --tasks NAME,... without --ref")
    if args.save_logits and (args.ref is None or args.ref.endswith(".safetensors")):
        args.parser.error("--save-logits keeps the predictions of the model that --ref names")
    from .silence import quiet_libraries

    args.files = [arguments.local(path) for path in args.files]
    args.ref = args.ref and arguments.local(args.ref)
    quiet_libraries()
    from ..torch.evaluate.judge import Question, judge, reference_logits
    from ..torch.evaluate.mapped import common
    from ..torch.evaluate.tasks import Tasks

    question = Question(
        None if args.text is None else arguments.text(args.text), context or 0, stride or 0, args.limit, args.device,
        args.weight_only, args.tasks and Tasks(args.tasks.split(","), args.task_folder, args.task_limit, args.batch),
        None if args.ref is None else common(args.files),
    )  # fmt: skip
    with ProgressBar("predicting", "{} tokens".format) as progress:
        opened = (
            nullcontext()
            if args.ref is None
            else reference_logits(args.ref, question, args.save_logits, args.force, progress.update)
        )
        with opened as reference:
            verdicts = list(judge(args.files, question, reference, progress.update))
    if args.json:
        asked = {"text": args.text, "reference": args.ref}
        models = [_plain(verdict) for verdict in verdicts]
        emit(asked | (models[0] if len(models) == 1 else {}) | {"models": models})
    elif len(verdicts) == 1:
        _show_one(args, verdicts[0])
    else:
        _show(args, verdicts)
    return 0


def _plain(verdict: Verdict) -> dict[str, Any]:
    found, speed = verdict.quality, verdict.speed
    quality = {} if found is None else {
        "context": verdict.context, "stride": verdict.stride, **asdict(found), "perplexity": found.perplexity,
        "reference_perplexity": found.reference_perplexity,
    }  # fmt: skip
    return {
        "file": verdict.file, "bytes": verdict.bytes, **quality, **asdict(speed),
        "tokens_per_second": 1 / speed.token_seconds, "memory_bytes": verdict.memory, "tasks": verdict.tasks,
    }  # fmt: skip


def _show_one(args: argparse.Namespace, verdict: Verdict) -> None:
    found, speed = verdict.quality, verdict.speed
    if found is not None:
        print(f"{args.text}: {found.tokens:,} tokens predicted, in windows of {verdict.context}")
        print(f"perplexity     {found.perplexity:.4f} ± {found.perplexity * found.loss_error:.4f}")
    if found is not None and found.divergence is not None and found.reference_perplexity is not None:
        ratio = found.perplexity / found.reference_perplexity
        print(f"reference      {found.reference_perplexity:.4f}, ratio {ratio:.4f}")
        apart = found.divergence
        print(
            f"divergence     mean {apart.mean:.6f} ± {apart.mean_error:.6f} nats, median {apart.median:.6f}, "
            f"99 % below {apart.percentile_99:.4f}, largest {apart.largest:.4f}"
        )
        print(f"same first     {apart.same_first:.2%} ± {apart.same_first_error:.2%} of tokens")
    print(
        f"speed          loaded in {speed.load_seconds:.2f} s, first token after {speed.first_token_seconds:.3f} s "
        f"(prompt of {speed.prompt}), then {1 / speed.token_seconds:.1f} tokens/s"
    )
    memory = "not known on this system" if verdict.memory is None else f"{size(verdict.memory)} at most"
    print(f"size           {size(verdict.bytes)} in the file; memory {memory}")
    _show_tasks([verdict])


def _show(args: argparse.Namespace, verdicts: Sequence[Verdict]) -> None:
    first = verdicts[0].quality
    if first is not None:
        print(f"{args.text}: {first.tokens:,} tokens predicted, in windows of {verdicts[0].context}")
        if first.reference_perplexity is not None:
            print(f"reference {args.ref}: perplexity {first.reference_perplexity:.4f}")
        print()
    head = ["model", "size", "perplexity", "KL mean", "KL median", "KL 99 %", "same first"]
    head += ["first token", "tokens/s", "memory"]
    rows = [_row(verdict) for verdict in verdicts]
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    print(table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], right=range(1, len(kept))))
    _show_tasks(verdicts)


def _show_tasks(verdicts: Sequence[Verdict]) -> None:
    """Print a row for each metric of each task, and a column for each model."""
    names = [(task, metric) for task, scores in verdicts[0].tasks.items() for metric in scores]
    rows = [[task, metric, *(f"{each.tasks[task][metric]:.4f}" for each in verdicts)] for task, metric in names]
    if rows:
        print()
        print(table(["task", "metric", *(each.file for each in verdicts)], rows, right=range(2, 2 + len(verdicts))))


def _row(verdict: Verdict) -> list[str]:
    found, speed = verdict.quality, verdict.speed
    plain = f"{found.perplexity:.4f} ± {found.perplexity * found.loss_error:.4f}" if found else ""
    far, apart = ["", "", "", ""], found and found.divergence
    if apart is not None:
        far = [
            f"{apart.mean:.5f} ± {apart.mean_error:.5f}", f"{apart.median:.5f}", f"{apart.percentile_99:.4f}",
            f"{apart.same_first:.2%} ± {apart.same_first_error:.2%}",
        ]  # fmt: skip
    return [
        verdict.file, size(verdict.bytes), plain, *far, f"{speed.first_token_seconds:.3f} s",
        f"{1 / speed.token_seconds:.1f}",
        "" if verdict.memory is None else size(verdict.memory),
    ]  # fmt: skip
