"""Runs ``aibit eval``: measures how well a model predicts a text, and how far it is from a reference model."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoadError, told_by
from .output import ProgressBar, emit

if TYPE_CHECKING:
    from ..torch.evaluate.perplexity import Quality


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--text", metavar="TEXT", required=True, help="a UTF-8 text file, predicted token by token")
    parser.add_argument("--ref", metavar="MODEL", help="the model to compare with: a directory or an .aibit file")
    parser.add_argument("--context", type=int, default=512, metavar="N", help="tokens of a window (512)")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens between starts of windows (half the context)")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N tokens of the text")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weight-only", action="store_true", help="do not quantize inputs; see aibit run")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Predict the text, and print the figures."""
    stride = args.stride if args.stride is not None else max(1, args.context // 2)
    if args.context < 2 or not 1 <= stride <= args.context or (args.limit is not None and args.limit < 2):
        args.parser.error("--context and --limit must be 2 or more, --stride from 1 to --context")
    from .silence import quiet_libraries

    quiet_libraries()
    from ..torch.evaluate.perplexity import evaluate
    from ..torch.load.model import load

    model, tokenizer = load(args.file, args.device, weight_only=args.weight_only)
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise LoadError(f"{args.file}: {type(model).__name__} does not predict the next token")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and args.context > longest:
        args.parser.error(f"--context {args.context}: the model takes {longest} tokens")
    ids = _tokens(args, tokenizer)
    reference = None if args.ref is None else _reference(args.ref, args.device)
    with ProgressBar("predicting", "{} tokens".format) as progress:
        update = progress.update
        step = None if update is None else lambda done, total: update(done, total, "")
        found = evaluate(model, ids, args.context, stride, reference, step)
    if args.json:
        emit({
            "file": args.file, "text": args.text, "reference": args.ref, "context": args.context, "stride": stride,
            **asdict(found), "perplexity": found.perplexity, "reference_perplexity": found.reference_perplexity,
        })  # fmt: skip
    else:
        _show(args, found)
    return 0


def _tokens(args: argparse.Namespace, tokenizer: Any) -> Any:
    """Return the token ids of the text, i64 [n], including those that the tokenizer puts before a text."""
    import torch

    try:
        text = Path(args.text).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(f"{args.text}: no UTF-8 at byte {error.start}") from error
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise LoadError(f"{args.text}: {len(ids)} tokens, two or more are needed")
    return torch.tensor(ids[: args.limit])


def _reference(path: str, device: str) -> Any:
    """Load the model to compare with: an ``.aibit`` file, or a directory by transformers, in the dtype stored there."""
    if not Path(path).is_dir():
        from ..torch.load.model import load_model

        return load_model(path, device)
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        found = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map=device, local_files_only=True)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: transformers cannot load it: {told_by(error)}") from error
    return found.eval()


def _show(args: argparse.Namespace, found: Quality) -> None:
    print(f"{args.text}: {found.tokens:,} tokens predicted, in windows of {args.context}")
    print(f"perplexity     {found.perplexity:.4f} ± {found.perplexity * found.loss_error:.4f}")
    if found.divergence is None or found.reference_perplexity is None:
        return
    ratio = found.perplexity / found.reference_perplexity
    print(f"reference      {found.reference_perplexity:.4f}, ratio {ratio:.4f}")
    apart = found.divergence
    print(
        f"divergence     mean {apart.mean:.6f} nats, median {apart.median:.6f}, 99 % below {apart.percentile_99:.4f}, "
        f"largest {apart.largest:.4f}"
    )
    print(f"same first     {apart.same_first:.2%} of tokens")
