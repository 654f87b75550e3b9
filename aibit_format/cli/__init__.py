"""Runs the command line. Each verb has its own module; this one parses arguments and reports errors for all of them.

Results go to stdout, everything else to stderr. The exit status is 0 for success, 1 for a failure or a difference, 2
for wrong usage, 3 for an invalid aibit file, 130 after an interrupt, and 143 after a request to end. Only the module of
the verb used is imported.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from .. import native
from .._version import __version__
from ..errors import AibitError, FormatError, RecipeError
from ..io.mistaken import not_a_file
from .output import printable, terminals

# Verb -> (module, description). The module has ``configure(parser)`` and ``run(arguments) -> exit status``.
VERBS: dict[str, tuple[str, str]] = {
    "convert": ("convert", "write an .aibit file from a model directory"),
    "prune": ("prune", "write a smaller model: fewer layers, channels, heads or experts"),
    "calibrate": ("calibrate", "take statistics of what goes into a model's layers when it reads a text"),
    "inspect": ("inspect", "show the contents of an .aibit, .gguf or .safetensors file"),
    "verify": ("verify", "check a file's structure and every checksum"),
    "sign": ("sign", "sign a file, or make a key to sign with"),
    "graph": ("graph", "write a copy of a model with the graph of what it computes, to run without the model's Python"),
    "run": ("run", "generate text"),
    "eval": (
        "eval",
        "measure how well models predict a text, how far they are from a reference, and how fast they are",
    ),
    "compare": ("compare", "show how several models continue the same prompts"),
    "bench": ("bench", "measure how fast a model opens, verifies, loads and generates on this machine"),
    "trim": ("trim", "write a model with a smaller vocabulary"),
    "export": ("export", "write a file in another format: huggingface, safetensors, gguf or onnx"),
    "extract": ("extract", "write a file's documents or tensors to files of their own"),
    "split": ("split", "cut a model into shards"),
    "diff": ("diff", "show the differences between two models"),
    "edit": ("edit", "write a copy of a model with other metadata or documents"),
    "merge": ("merge", "join a model's shards into one file"),
    "card": ("card", "print a model card that says what a file knows of itself"),
    "push": ("push", "upload a file and its model card to a hub"),
}
ALIASES = {"show": "inspect"}

_NO_FILE = ("AIB-E102", "AIB-E801", "AIB-E803")  # not this format; not a regular file; cannot be opened

_OF_VALID_FILES = ("AIB-E8", "AIB-E404", "AIB-E406")  # it cannot be read; values in it are unknown here

OK, FAILED, USAGE, INVALID, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    with terminals():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    args = _parse(arguments)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has gone away, as `head` does. Unless stdout is redirected, its flush at exit fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except AibitError as error:
        _complain(args, *_lines(error))
        return status_of(error)
    except OSError as error:
        _complain(args, f"{error.filename or ''}: {error.strerror or error}")
        return FAILED
    except BaseException as error:  # of a library, which met something that nothing here has checked
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # tokenizers, in Rust
            raise
        _complain(args, f"unexpected {type(error).__name__}: {error}; -v shows where")
        return FAILED


def _complain(args: argparse.Namespace, *lines: str) -> None:
    """Print an error, each line of it on one line; with ``-v``, the traceback."""
    if args.verbose:
        traceback.print_exc()
    for line in lines:
        print(f"aibit: {printable(line)}", file=sys.stderr)


def entry() -> None:
    """Run ``main``, then end the process without the cleanup of libraries, which takes seconds.

    A process that is told to end, by ``kill`` or a service manager, first removes what it has half written.
    """
    signal.signal(signal.SIGTERM, _terminate)
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def status_of(error: AibitError) -> int:
    """Return the exit status for an error. Some that are about a file do not make it invalid."""
    if isinstance(error, FormatError) and not error.code.startswith(_OF_VALID_FILES):
        return INVALID
    return USAGE if isinstance(error, RecipeError) else FAILED


def _lines(error: AibitError) -> list[str]:
    """Return a line for each problem of an invalid file, at most 20; for other errors the message with its code."""
    if isinstance(error, FormatError):
        head = f"{error.path}: " if error.path else ""
        hint = not_a_file(error.path) if error.path and error.code in _NO_FILE else None
        return [f"{head}{problem}" for problem in error.problems[:20]] + ([f"{head}{hint}"] if hint else [])
    return [f"{error} [{error.code}]"]


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse arguments. An optional positional one may also follow options, where argparse would not accept it."""
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
        prog="aibit", description="Make, check and run files that each hold a quantized language model."
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
