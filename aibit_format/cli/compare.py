"""Runs ``aibit compare``: has several models continue the same prompts, and shows their texts one below another."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import LoadError
from . import arguments
from .output import emit, printable

if TYPE_CHECKING:
    from ..torch.evaluate.texts import Continuation

_PROMPTS = ("The history of the sea begins with", "To bake bread you need", "def read_lines(path):")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument(
        "files", metavar="MODEL", nargs="+", help="an .aibit or GGUF file, or a directory; the first is the reference"
    )
    parser.add_argument("-p", "--prompt", action="append", help="a text to continue; may be given several times")
    parser.add_argument("--prompt-file", metavar="FILE", help="a UTF-8 file with a prompt on each line")
    parser.add_argument("--chat", action="store_true", help="prompts are messages: use each model's chat template")
    parser.add_argument(
        "-n", "--max-new-tokens", type=arguments.positive, default=64, metavar="N", help="at most N tokens (64)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weight-only", action="store_true", help="do not quantize inputs; see aibit run")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Continue each prompt with each model, one model at a time, and print the texts."""
    if len(args.files) < 2:
        args.parser.error("two models or more are compared")
    prompts = _prompts(args)
    from .silence import quiet_libraries

    args.files = [arguments.local(path) for path in args.files]
    quiet_libraries()
    from ..torch.evaluate.operands import operand
    from ..torch.evaluate.texts import continued

    texts: list[list[Continuation]] = []
    for path in args.files:
        with operand(path, args.device, args.weight_only) as (model, tokenizer):
            try:
                texts.append(continued(model, tokenizer, prompts, args.max_new_tokens, args.chat))
            except LoadError as error:
                raise LoadError(f"{path}: {error}") from error
            del model, tokenizer
    if args.json:
        emit({"prompts": [_plain(args.files, texts, i, prompt) for i, prompt in enumerate(prompts)]})
        return 0
    for i, prompt in enumerate(prompts):
        print(f"{'' if i == 0 else chr(10)}> {printable(prompt)}")
        for path, found in zip(args.files, texts, strict=True):
            shared, first = found[i].shared_with(texts[0][i]), texts[0][i]
            same = (
                "" if found is texts[0] else " (the same)" if found[i] == first else f" (parts after {shared} tokens)"
            )
            print(f"{path}{same}:\n{_indented(found[i].text)}")
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    prompts: list[str] = list(args.prompt or ())
    if args.prompt_file:
        prompts += [line for line in arguments.text(args.prompt_file).splitlines() if line.strip()]
        if not prompts:
            raise LoadError(f"{args.prompt_file}: holds no prompt")
    return prompts or list(_PROMPTS)


def _plain(files: list[str], texts: list[list[Continuation]], i: int, prompt: str) -> dict[str, object]:
    return {
        "prompt": prompt,
        "texts": [
            {
                "file": path,
                "text": found[i].text,
                "ids": list(found[i].ids),
                "shared": found[i].shared_with(texts[0][i]),
            }
            for path, found in zip(files, texts, strict=True)
        ],
    }


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
