"""The command line: one file a verb, and here what they share.

Results go to stdout and everything else to stderr. Exit status: 0 ok, 1 failed or differs, 2 usage, 3 not a valid
aibit file, 130 interrupted. Only the module of the verb that is asked for is imported.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import native
from .._version import __version__
from ..errors import AibitError, FormatError, RecipeError

# Verb -> (module, what it does). The module has ``configure(parser)`` and ``run(arguments) -> exit status``.
VERBS: dict[str, tuple[str, str]] = {
    "convert": ("convert", "write an .aibit file from a model directory"),
    "inspect": ("inspect", "show what a file holds: .aibit, .gguf or .safetensors"),
    "verify": ("verify", "check a file's structure and every checksum"),
    "sign": ("sign", "sign a file, or make a key to sign with"),
    "run": ("run", "generate text"),
    "eval": ("eval", "measure how well a model predicts a text, and how far it is from another"),
    "bench": ("bench", "measure how fast a model opens, verifies, loads and generates here"),
    "export": ("export", "write a file in another format: huggingface, safetensors or gguf"),
    "extract": ("extract", "write a file's documents or tensors out"),
    "split": ("split", "cut a model into shards"),
    "diff": ("diff", "say what differs between two models"),
    "edit": ("edit", "write a model with other metadata or documents"),
    "merge": ("merge", "make one file of a model's shards"),
}
ALIASES = {"show": "inspect"}

OK, FAILED, USAGE, INVALID, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parse(arguments)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does. Point stdout elsewhere, or flushing it fails at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except AibitError as error:
        if args.verbose:
            raise
        for line in _lines(error):
            print(f"aibit: {line}", file=sys.stderr)
        return status_of(error)
    except OSError as error:
        if args.verbose:
            raise
        print(f"aibit: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return FAILED


def entry() -> None:
    """The command: ``main``, and then the end of the process without taking libraries down, which takes seconds."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def status_of(error: AibitError) -> int:
    """The exit status for an error. A file that cannot even be opened (AIB-E8xx) is no statement on its format."""
    if isinstance(error, FormatError) and not error.code.startswith("AIB-E8"):
        return INVALID
    return USAGE if isinstance(error, RecipeError) else FAILED


def _lines(error: AibitError) -> list[str]:
    """A line for each problem of an invalid file; otherwise the message with its code."""
    if isinstance(error, FormatError):
        head = f"{error.path}: " if error.path else ""
        return [f"{head}{problem}" for problem in error.problems[:20]]
    return [f"{error} [{error.code}]"]


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments; an optional one by place may also come after options, where argparse would not look for it."""
    parser = _parser(arguments)
    args, rest = parser.parse_known_args(arguments)
    late = vars(args).get("late")
    if late and len(rest) == 1 and vars(args)[late] is None and not rest[0].startswith("-"):
        setattr(args, late, rest[0])
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aibit", description="One file for a quantized language model: made, checked, and run from the mapping."
    )
    compiled = "with" if native.available else "without"
    parser.add_argument("--version", action="version", version=f"aibit {__version__} ({compiled} compiled code)")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    asked = next((ALIASES.get(argument, argument) for argument in arguments if not argument.startswith("-")), None)
    for name, (module, text) in VERBS.items():
        aliases = [alias for alias, target in ALIASES.items() if target == name]
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", aliases=aliases)
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.add_argument("-v", "--verbose", action="store_true", help="show a traceback when something fails")
        if name == asked:
            found = import_module(f"{__name__}.{module}")
            found.configure(verb)
            verb.set_defaults(run=found.run)
    return parser


if __name__ == "__main__":
    entry()
