"""Runs ``aibit run``: generates text and prints it token by token."""

from __future__ import annotations

import argparse
import sys
import time
from threading import Event
from typing import Any

from ..errors import LoadError, MissingPackageError
from ..file.sharded_reader import paths_of
from ..hf.context import context_of
from ..io.readahead import prefetch
from . import fast_imports
from .arguments import local
from .output import emit


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to continue (default: standard input)")
    parser.set_defaults(late="prompt")
    parser.add_argument("--chat", action="store_true", help="use the file's chat template; without PROMPT, take turns")
    parser.add_argument("--system", metavar="TEXT", help="the system message of --chat")
    parser.add_argument("-n", "--max-new-tokens", type=int, default=128, metavar="N", help="at most N tokens (128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 always takes the likeliest token (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the top tokens of this total probability")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (0)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--weight-only", action="store_true",
        help="do not quantize inputs: more exact, faster for nf4 and after long prompts, but not bit for bit what "
        "bitsandbytes computes",
    )  # fmt: skip
    parser.add_argument(
        "--graph",
        action="store_true",
        help="run the graph that aibit graph has put into FILE: a faster start and faster tokens",
    )
    parser.add_argument(
        "--compile", action="store_true",
        help="compile the model with torch.compile: minutes at first, less at later starts; for GPUs, as tokens on a "
        "CPU do not get faster",
    )  # fmt: skip
    parser.add_argument("--verify", choices=["structure", "touched", "full"], default="structure")
    parser.add_argument(
        "--key", metavar="PUB", action="append", help="run FILE only if signed by this public key (or one of several)"
    )


def run(args: argparse.Namespace) -> int:
    """Load the model, then generate text and print it as it is generated."""
    from .silence import quiet_libraries

    args.file = local(args.file)
    if args.graph and args.compile:
        raise LoadError("--graph runs compiled operators of its own: leave out --compile")
    if args.graph:
        from . import run_graph

        return run_graph.run(args)
    quiet_libraries()
    started = time.perf_counter()
    enough = Event()
    prefetch(*paths_of(args.file), enough=enough)
    torch, load = _import()
    if args.device.startswith("cuda"):
        enough.set()  # loading reads the file itself, past the page cache: two readers would slow each other down
    options = {"verify": args.verify, "signed_by": args.key, "weight_only": args.weight_only}
    model, tokenizer = load(args.file, args.device, **options)
    if not model.can_generate():
        raise LoadError(f"{args.file}: {type(model).__name__} does not generate text")
    if args.chat and not tokenizer.chat_template:
        raise LoadError(f"{args.file}: holds no chat template; run it without --chat")
    if args.compile:
        from ..file import sharded_reader
        from ..torch.load.compiled import compile_model

        with sharded_reader.open(args.file) as file:
            compile_model(model, file)
    torch.manual_seed(args.seed)
    session = _Session(args, model, tokenizer)
    session.loaded = time.perf_counter() - started
    if args.chat and args.prompt is None and sys.stdin.isatty():
        return session.converse()
    prompt = args.prompt if args.prompt is not None else sys.stdin.read()
    result = session.answer(prompt)
    if args.json:
        emit(result)
    else:
        print(
            f"\n{result['new_tokens']} tokens in {result['seconds']:.2f} s "
            f"({result['new_tokens'] / max(result['seconds'], 1e-9):.1f} a second), started in {session.loaded:.2f} s",
            file=sys.stderr,
        )
    return 0


def _import() -> tuple[Any, Any]:
    """Import torch and ``load`` without modules that they never use; if that fails, with them."""
    try:
        undo = fast_imports.start()
        import torch
    except ImportError as error:
        raise MissingPackageError("running a model needs torch: pip install 'aibit-format[hf]'") from error
    try:
        from ..torch.load import build
    except MissingPackageError:
        raise
    except Exception:  # a version of a library that at import needs more than a stand-in has
        if undo is None:
            raise
        undo()
        try:
            from ..torch.load import build  # noqa: F401
        except LoadError as error:  # what was imported in part cannot always be imported again
            hint = "AIBIT_FULL_IMPORTS=1 in the environment has libraries import all that they want"
            raise LoadError(f"{error}; {hint}") from error
    from ..torch.load.model import load

    return torch, load


class _Session:
    """Hold a model, its tokenizer, and the messages so far."""

    def __init__(self, args: argparse.Namespace, model: Any, tokenizer: Any) -> None:
        self.args, self.model, self.tokenizer = args, model, tokenizer
        self.messages = [{"role": "system", "content": args.system}] if args.system else []
        self.loaded = 0.0
        self._context = context_of(model.config)

    def converse(self) -> int:
        """Answer lines from the terminal until end of input."""
        while True:
            try:
                line = input("> ")
            except EOFError:
                print()
                return 0
            if line.strip():
                self.answer(line)

    def answer(self, prompt: str) -> dict[str, Any]:
        """Generate from one prompt; the text is printed as it is generated, unless the result is wanted as JSON."""
        import torch
        from transformers import TextStreamer

        batch = self._tokens(prompt)
        if batch["input_ids"].shape[1] == 0:
            raise LoadError("the prompt is empty, and the tokenizer does not start texts with a token: give a prompt")
        wanted, room = self.args.max_new_tokens, self._room(batch["input_ids"].shape[1])
        options: dict[str, Any] = {"max_new_tokens": min(wanted, room), "do_sample": self.args.temperature > 0}
        if options["do_sample"]:
            options |= {"temperature": self.args.temperature, "top_p": self.args.top_p}
        if self.model.generation_config.pad_token_id is None and self.tokenizer.pad_token_id is None:
            options["pad_token_id"] = self.tokenizer.eos_token_id
        if not self.args.json:
            options["streamer"] = TextStreamer(self.tokenizer, skip_prompt=self.args.chat, skip_special_tokens=True)
        started = time.perf_counter()
        with torch.inference_mode():
            ids = self.model.generate(**batch, **options)[0]
        seconds = time.perf_counter() - started
        new = ids if self.model.config.is_encoder_decoder else ids[batch["input_ids"].shape[1] :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        if room <= len(new) < wanted:
            print(f"\naibit: stopped: the model's context of {self._context} tokens is full", file=sys.stderr)
        if self.args.chat:
            self.messages.append({"role": "assistant", "content": text})
        return {"prompt": prompt, "text": text, "new_tokens": len(new), "seconds": seconds, "load_seconds": self.loaded}

    def _room(self, tokens: int) -> int:
        """Return how many tokens the model can add to so many: beyond its context it writes nonsense, or fails.

        Raises:
            LoadError: it can add none.
        """
        if self._context is None:
            return self.args.max_new_tokens
        if tokens >= self._context:
            what = "the conversation" if self.args.chat else "the prompt"
            raise LoadError(f"{what} has {tokens} tokens, and the model's context holds {self._context}: shorten it")
        return self._context - tokens

    def _tokens(self, prompt: str) -> dict[str, Any]:
        if self.args.chat:
            self.messages.append({"role": "user", "content": prompt})
            batch = self.tokenizer.apply_chat_template(
                self.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            batch = self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        return {key: value.to(self.model.device) for key, value in batch.items()}
