"""What a measuring process does: one function a job, named in ``JOBS``. Each imports, then starts its clock."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.bench.codec import codec
from tools.bench.cold import cold, stream
from tools.bench.generation import generate
from tools.bench.llama import llama
from tools.bench.loaders import loader, use
from tools.bench.packed import differences, follow, roundings
from tools.bench.probe import Clock, Result, alternate, anonymous, pages, say
from tools.bench.throughput import throughput

_CUT = 1 << 20  # bytes that `verify` hashes at a time: a leaf of the format
_STRETCH = 16 << 20  # bytes that a thread takes of the file


def encode(shape: list[int], rounds: int) -> Result:
    """int8 encoders over one random float16 tensor, all with torch's own number of threads."""
    import numpy as np
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant

    from aibit_format.convert import encoders
    from aibit_format.convert.error import measure
    from aibit_format.schemes import make

    int8 = make("int8")
    values = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
    array = values.astype(np.float16)
    tensor = torch.from_numpy(array)
    ways = {
        "aibit": lambda: encoders.encode(int8, array, "f16"),
        "bitsandbytes": lambda: int8_vectorwise_quant(tensor),
        "aibit, error measured": lambda: measure(int8, encoders.encode(int8, array, "f16"), array, "f16"),
        "aibit, numpy alone": lambda: int8.encode(array, "f16"),
    }
    codes, absmax, _ = int8_vectorwise_quant(tensor)
    ours = encoders.encode(int8, array, "f16")
    same = bool((ours["codes"] == codes.numpy()).all() and (ours["row_absmax"] == absmax.numpy().reshape(-1)).all())
    return {"bytes": array.nbytes, "seconds": alternate(ways, rounds), "same": same}


def convert_aibit(source: str, tiny: str, target: str, scheme: str | None = None, jobs: int | None = None) -> Result:
    """A source to an ``.aibit`` file: from the first look at the source to the renamed, synced file."""
    from aibit_format.convert.convert import convert

    convert(tiny, target + ".warm", scheme, overwrite=True)  # imports the model's class, and what the source needs
    Path(target + ".warm").unlink()
    with Clock(watch=True) as clock:
        convert(source, target, scheme, jobs=jobs)
    return clock.figures()


def convert_transformers(source: str, tiny: str) -> Result:
    """The same checkpoint quantized in memory by transformers and bitsandbytes; nothing is written."""
    load = loader("quantize")
    load(tiny)
    with Clock(watch=True) as clock:
        load(source)
    return clock.figures()


def save_transformers(source: str, target: str, bits: int) -> Result:
    """Make the directory that transformers itself saves of a model in 8 or 4 bits."""
    with Clock() as clock:
        loader("quantize" if bits == 8 else "quantize to nf4")(source).save_pretrained(target)
    return clock.figures()


def load(way: str, path: str, tiny: str, watch: bool = False) -> Result:
    """A model that can run, and its first forward; memory is what the process has gained."""
    run = loader(way)
    use(run(tiny))
    with Clock(watch) as clock:
        model = run(path)
    with Clock(watch) as first:
        use(model)
    highest = max(clock.highest, first.highest, key=sum)
    return {
        **clock.figures(),
        "forward": first.seconds,
        "both": clock.seconds + first.seconds,
        "after_forward": first.after,
        "highest": sum(highest),
        "highest_anonymous": highest[0],
        "highest_file": highest[1],
    }


def hold(way: str, path: str, mapped: str) -> Result:
    """Load, run once, and stay until told to look: others hold the same file then."""
    model = loader(way)(path)
    use(model)
    say({"ready": True})
    sys.stdin.readline()
    found = {"process": pages(), "mapping": pages(mapped), "anonymous": anonymous()}
    say(found)
    sys.stdin.readline()  # stay until everybody has looked
    return found


def open_file(path: str, rounds: int) -> Result:
    """Opening and checking a file's header and tables; the warm-up is not counted."""
    from aibit_format.file import reader

    file = reader.File(path)
    planes, tensors = file.verified().planes, len(file)
    seconds = alternate({"open": lambda: reader.File(path).close()}, rounds)["open"]
    return {"seconds": statistics.median(seconds), "planes": planes, "tensors": tensors}


def verify(path: str, rounds: int) -> Result:
    """Every check of a file, against nothing but hashing the same mapped pages, with every core and with one thread."""
    import xxhash

    from aibit_format.file import reader
    from aibit_format.native.cores import usable_cores

    file = reader.File(path)
    data = file.storage.read_at(0, file.tables.file_size).data

    def hash_stretch(begin: int) -> None:
        for start in range(begin, min(begin + _STRETCH, len(data)), _CUT):
            xxhash.xxh3_64_intdigest(data[start : start + _CUT])

    def hash_alone() -> None:
        for begin in range(0, len(data), _STRETCH):
            hash_stretch(begin)

    def hash_with_every_core() -> None:
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(hash_stretch, range(0, len(data), _STRETCH)))

    ways = {
        "verify": file.verify,
        "xxh3_64, every core": hash_with_every_core,
        "verify, one thread": lambda: file.verify(jobs=1),
        "xxh3_64, one thread": hash_alone,
    }
    return {"bytes": len(data), "seconds": alternate(ways, rounds)}


JOBS: dict[str, Callable[..., Result]] = {
    "codec": codec,
    "cold": cold,
    "convert_aibit": convert_aibit,
    "convert_transformers": convert_transformers,
    "differences": differences,
    "encode": encode,
    "follow": follow,
    "generate": generate,
    "hold": hold,
    "llama": llama,
    "load": load,
    "open": open_file,
    "roundings": roundings,
    "save_transformers": save_transformers,
    "stream": stream,
    "throughput": throughput,
    "verify": verify,
}
