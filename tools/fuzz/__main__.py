"""Fuzz what reads files that others wrote.

    python -m tools.fuzz --seconds 60                 a minute of the reader, from the fixtures
    python -m tools.fuzz --target gguf --seconds 60   a minute of another target
    python -m tools.fuzz --inputs 5000 --seed 1       so many inputs, the same ones each time
    python -m tools.fuzz --seconds 3600 --corpus DIR  an hour; inputs that reach something new are kept in DIR
    python -m tools.fuzz --replay FILE...             what one input comes to

The targets:

    reader       one .aibit file: open, validate, decode and verify, over a mapped file and over bytes
    signatures   a file with signatures in it and beside it, checked with a key
    shards       a model in several files, opened by the first
    safetensors, gguf, pickle, archive, checkpoint, quantized, makers
                 what a converter reads: model.safetensors, GGUF, pytorch_model.bin, the old ZIP archive, and a
                 directory with its config.json and index, the last two with weights of each quant_method and in the
                 form of their makers; what is read is also converted and verified
    calibrations
                 statistics of activations, llama.cpp's imatrix in both forms, and saved predictions
    graphs       documents of stored graphs, parsed and checked against a small model's tensors

Needs Atheris (https://github.com/google/atheris, part of the ``dev`` extra). It measures which branches of the package
an input reaches, and mutates those that reach new ones. Mutation alone would never get past the digests, so a mutator
that knows the file's records changes one thing, such as a field, a metadata value, a name, a document or a plane, and
then makes the root and the leaves right again; some inputs stay unsealed, to keep the digests themselves honest. The
mutators of the other targets know their formats as far as bytes at random would lead nowhere.

A finding is: an exception other than a coded one, a verdict that depends on how the bytes are held, an accepted file
that serialises to other bytes, a signature found on what was not signed, a pickle that gets anything imported or run,
a conversion that does not verify or holds other planes, a minute of the processor on one input, or more than a GiB of
memory. It ends the run with a status other than 0 and leaves the input in the folder of ``--findings``. README.md,
beside this file, tells what was run and found.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import resource
import signal
import sys
import tempfile
import warnings
from pathlib import Path

from tools import fuzz as targets
from tools.fuzz import LONGEST, TARGETS

MEMORY_MIB = 1024  # on top of what Python and its modules have taken before the first input
SECONDS_AN_INPUT = 60  # of the processor: the machine may be busy with something else
SECONDS_AWAY = 600  # by the clock, for an input that waits for something that never comes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, default="reader", help="what to fuzz (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="how long to run (default: %(default)s)")
    parser.add_argument("--inputs", type=int, help="how many inputs to run, however long it takes")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0 takes another each time")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with, where new ones are kept")
    parser.add_argument("--findings", type=Path, default=Path(), help="folder for inputs that fail (default: here)")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="inputs to run once each, unfuzzed")
    arguments = parser.parse_args()
    if arguments.replay:
        target = targets.make(arguments.target)
        for path in arguments.replay:
            print(f"{path}: {target.run(path.read_bytes())}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return fuzz(arguments, Path(folder))


def fuzz(arguments: argparse.Namespace, seeds: Path) -> int:
    """Run libFuzzer in a child: it ends its own process, and has nowhere to return to."""
    corpus = arguments.corpus or seeds
    corpus.mkdir(parents=True, exist_ok=True)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        start(arguments, corpus, seeds)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(arguments: argparse.Namespace, corpus: Path, seeds: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["aibit_format"]):
        from tools.fixtures import file_builder

        target = targets.make(arguments.target)
    # What a mutator would build beyond that is cut off: its memory would be taken for a reader's.
    file_builder.LARGEST = LONGEST
    for name, data in target.seeds().items():
        (seeds / name).write_bytes(data)
    taken, resident = (int(n) * resource.getpagesize() for n in Path("/proc/self/statm").read_text().split()[:2])
    # What an input claims must not be reserved either: address space, of which Python and numpy have taken some.
    limit = taken + (2 * MEMORY_MIB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    end = f"-max_total_time={arguments.seconds}" if arguments.inputs is None else f"-runs={arguments.inputs}"
    options = [
        sys.argv[0], end, f"-max_len={LONGEST}", f"-seed={arguments.seed}",
        f"-timeout={SECONDS_AWAY}", f"-rss_limit_mb={MEMORY_MIB + (resident >> 20)}", "-print_final_stats=1",
        "-verbosity=1", f"-artifact_prefix={arguments.findings}{os.sep}", str(corpus), str(seeds),
    ]  # fmt: skip
    warnings.simplefilter("ignore")  # what libraries have to say of such inputs
    logging.disable()
    mutator = target.mutator(lambda data, size: atheris.Mutate(data, size))
    signal.signal(signal.SIGPROF, out_of_time)

    def run(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS_AN_INPUT)
        target.run(data)
        signal.setitimer(signal.ITIMER_PROF, 0)

    atheris.Setup(options, run, custom_mutator=mutator)
    atheris.Fuzz()


def out_of_time(*_: object) -> None:
    """End the process, in a way of which libFuzzer keeps the input."""
    faulthandler.dump_traceback()
    os.abort()


if __name__ == "__main__":
    sys.exit(main())
