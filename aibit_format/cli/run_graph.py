"""Runs ``aibit run --graph``: generates text by the graph of a file, without importing transformers."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from ..errors import LoadError, MissingPackageError
from .output import emit

if TYPE_CHECKING:
    from ..torch.graph.text import Texts as Tokenizer


def run(args: argparse.Namespace) -> int:
    """Load the graph, then generate text and print it as it is generated."""
    started = time.perf_counter()
    try:
        import torch

        from ..torch.graph.model import load_graph
        from ..torch.graph.text import Texts
    except ImportError as error:
        raise MissingPackageError(f"running a graph needs {error.name}: pip install 'aibit-format[hf]'") from error
    if args.chat or args.device != "cpu":
        raise LoadError("--graph continues a prompt on a CPU; leave out --chat and --device")
    model = load_graph(args.file, verify=args.verify, signed_by=args.key)
    texts = Texts(model.file)
    torch.manual_seed(args.seed)
    loaded = time.perf_counter() - started
    prompt = args.prompt if args.prompt is not None else sys.stdin.read()
    ids = texts.encode(prompt)
    if not ids:
        raise LoadError("the prompt is empty, and the tokenizer does not start texts with a token: give a prompt")
    room = model.context - len(ids)
    if room < 1:
        raise LoadError(f"the prompt has {len(ids)} tokens, and the graph takes {model.context}: shorten it")
    begun = time.perf_counter()
    shown = _Shown(texts, ids, quiet=args.json)
    found = model.generate(
        torch.tensor([ids]), min(args.max_new_tokens, room), args.temperature > 0, max(args.temperature, 1e-6),
        top_p=args.top_p, on_token=shown,
    )[0].tolist()  # fmt: skip
    seconds, new = time.perf_counter() - begun, len(found) - len(ids)
    result: dict[str, Any] = {
        "prompt": prompt, "text": texts.decode(found[len(ids) :]), "new_tokens": new, "seconds": seconds,
        "load_seconds": loaded, "first_seconds": None if shown.first is None else shown.first - started,
    }  # fmt: skip
    if args.json:
        emit(result)
        return 0
    shown.end()
    if room <= new < args.max_new_tokens:
        print(f"aibit: stopped: the graph's {model.context} tokens are full", file=sys.stderr)
    print(
        f"{new} tokens in {seconds:.2f} s ({new / max(seconds, 1e-9):.1f} a second), started in {loaded:.2f} s",
        file=sys.stderr,
    )
    return 0


class _Shown:
    """Prints the text of each new id as soon as it is whole, after that of the prompt; keeps when the first came."""

    def __init__(self, texts: Tokenizer, ids: list[int], quiet: bool) -> None:
        self._texts, self._quiet = texts, quiet
        self._new: list[int] = []
        self._printed = 0
        self.first: float | None = None
        if not quiet:
            print(texts.decode(ids), end="", flush=True)

    def __call__(self, each: int) -> None:
        if self.first is None:
            self.first = time.perf_counter()
        self._new.append(each)
        text = "" if self._quiet else self._texts.decode(self._new)
        if not text.endswith("\ufffd"):  # a character may be several tokens
            self._print(text)

    def end(self) -> None:
        """Print what is left, and end the line."""
        if not self._quiet:
            self._print(self._texts.decode(self._new))
            print()

    def _print(self, text: str) -> None:
        if len(text) > self._printed:
            print(text[self._printed :], end="", flush=True)
            self._printed = len(text)
