"""Measures a mixture of experts that is larger than its memory: ``python -m tools.bench.experts FOLDER [--layers 12]``.

A Mixtral of 8 experts with random weights is made in the folder (6.6 GB of bf16 with 12 layers) and converted. Then it
generates, in processes of their own that begin with nothing of the file in memory:

    free       an .aibit file, with all memory
    limited    the same under ``--limit`` of memory, which counts the pages of the file too (cgroup v1 or v2; as root)
    bfloat16   transformers with everything in memory

For each: seconds until the model is loaded, of the prompt, and of a token, once its experts' pages have been read; the
most memory of its own (RssAnon), and how much of the file is in memory, by kind of plane. Logits of ``limited`` must be
those of ``free``, bit for bit. How far logits are from those in bf16 says little: random routers choose other experts
for the sake of a last bit. That outputs are those of the decoded weights is a test (``test_experts.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools import ROOT
from tools.bench.machine import machine

HIDDEN, INNER, EXPERTS, VOCABULARY, CHOSEN = 2048, 5632, 8, 512, 2
_TOKENS, _PROMPT = 16, 16
_CGROUPS = ("memory.limit_in_bytes", "memory.max")  # of version 1, and of version 2


def make_source(folder: Path, layers: int) -> Path:
    """Write the checkpoint, a layer a file, if it is not there."""
    import torch
    from safetensors.torch import save_file

    path = folder / f"mixtral-{layers}"
    if (path / "config.json").exists():
        return path
    path.mkdir(parents=True)
    index: dict[str, str] = {}

    def write(name: str, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        tensors = {
            key: (torch.randn(shape, generator=random) * 0.02 if len(shape) > 1 else torch.ones(shape)).bfloat16()
            for key, shape in shapes.items()
        }
        save_file(tensors, path / name)
        index.update(dict.fromkeys(shapes, name))

    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes: dict[str, tuple[int, ...]] = {
            f"{layer}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        shapes |= {f"{layer}.self_attn.{key}_proj.weight": (HIDDEN, HIDDEN) for key in "qo"}
        shapes |= {f"{layer}.self_attn.{key}_proj.weight": (HIDDEN // 4, HIDDEN) for key in "kv"}
        shapes[f"{layer}.block_sparse_moe.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            name = f"{layer}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{name}.w1.weight": (INNER, HIDDEN), f"{name}.w2.weight": (HIDDEN, INNER)}
            shapes |= {f"{name}.w3.weight": (INNER, HIDDEN)}
        write(f"layer-{i}.safetensors", shapes, i)
    ends = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    write("ends.safetensors", {**ends, "model.norm.weight": (HIDDEN,)}, layers)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 4, "num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "dtype": "bfloat16",
        "max_position_embeddings": 512, "tie_word_embeddings": False,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def resident(path: Path) -> Counter[str]:
    """Count the bytes of a file that are in memory, by the kind of their plane: experts, and all others."""
    import aibit_format as aibit

    page, found = mmap.PAGESIZE, Counter[str]()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        there = np.zeros(-(-len(mapping) // page), np.uint8)
        start, libc = ctypes.c_char.from_buffer(mapping), ctypes.CDLL(None, use_errno=True)
        address, size = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapping))
        wrong = libc.mincore(address, size, there.ctypes.data_as(ctypes.c_void_p))
        del start, address
    if wrong:
        raise OSError(ctypes.get_errno(), "mincore")
    with aibit.open(path) as opened:
        for name in opened:
            info = opened.info(name)
            kind = "experts" if len(info.shape) == 3 else "others"
            for plane in info.planes:
                pages = there[plane.offset // page : -(-(plane.offset + plane.length) // page)]
                found[f"{kind} in memory"] += min(int((pages & 1).sum()) * page, plane.length)
                found[kind] += plane.length
    return found


@contextlib.contextmanager
def limited(nbytes: int | None) -> Iterator[Path | None]:
    """Make a group of processes with so much memory, and yield the file that a process writes its number to."""
    if nbytes is None:
        yield None
        return
    roots = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    for root, name in ((root, name) for root in roots for name in _CGROUPS):
        group = root / "aibit-bench-experts"
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            (group / name).write_text(str(nbytes))
            try:
                yield group / "cgroup.procs"
            finally:
                group.rmdir()
            return
        with contextlib.suppress(OSError):
            group.rmdir()
    raise SystemExit("no group of processes with a limit of memory can be made here (cgroup; root)")


_PROCESS = """
import json, os, sys, time
what, path, group, logits, tokens, prompt = sys.argv[1:]
if group:
    with open(group, "w") as file:
        file.write(str(os.getpid()))
import torch
begun = time.perf_counter()
if what == "bfloat16":
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
else:
    import aibit_format as aibit
    model = aibit.load_model(path, weight_only=True)
loaded = time.perf_counter() - begun
ids = torch.arange(int(prompt))[None] * 7 % 512

def generated(count):
    begun, marks = time.perf_counter(), []
    with torch.inference_mode():
        out = model(ids, use_cache=True)
        first, marks = out.logits, [time.perf_counter()]
        for _ in range(count):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
            marks.append(time.perf_counter())
    times = [b - a for a, b in zip([begun, *marks], marks)]
    return first, times[0], times[1:]

first, cold, _ = generated(int(tokens))
again, warm, each = generated(int(tokens))
torch.save(again.float(), logits)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "loaded_s": loaded, "cold_prompt_s": cold, "prompt_s": warm, "token_s": sorted(each)[len(each) // 2],
    "own_bytes": int(status["RssAnon"].split()[0]) * 1024, "equal": torch.equal(first, again),
}))
"""


def measured(what: str, path: Path, limit: int | None, logits: Path) -> dict[str, Any]:
    """Run one way in a process of its own, which begins with nothing of the files in memory."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with limited(limit) as group:
        arguments = [what, str(path), str(group or ""), str(logits), str(_TOKENS), str(_PROMPT)]
        done = subprocess.run(
            [sys.executable, "-c", _PROCESS, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{what}: exit {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found | (dict(resident(path)) if path.is_file() else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model is made, and kept")
    parser.add_argument("--layers", type=int, default=12, help="default: %(default)s, 3.3 GB in int8")
    parser.add_argument("--scheme", default="int8", help="default: %(default)s")
    parser.add_argument("--limit", default="0.5", help="part of the file's size (default: %(default)s)")
    parser.add_argument("--without", action="append", default=[], metavar="WAY", help="leave out a way")
    arguments = parser.parse_args()
    import aibit_format as aibit

    source = make_source(arguments.folder, arguments.layers)
    path = arguments.folder / f"mixtral-{arguments.layers}-{arguments.scheme.partition(',')[0]}.aibit"
    report = aibit.convert(source, path, scheme=arguments.scheme, overwrite=True)
    limit = int(float(arguments.limit) * path.stat().st_size)
    ways = {"free": (path, None), "limited": (path, limit), "bfloat16": (source, None)}
    rows = {}
    for way, (what, most) in ways.items():
        if way not in arguments.without:
            rows[way] = measured(way, what, most, arguments.folder / f"{way}.logits")
            print(f"{way}: {json.dumps(rows[way])}", file=sys.stderr)
    found = {"machine": machine(), "scheme": arguments.scheme, "file_bytes": path.stat().st_size, "limit_bytes": limit,
             "ratio": report.compression_ratio, "rows": rows, **_differences(arguments.folder, rows)}  # fmt: skip
    print(json.dumps(found, indent=1))


def _differences(folder: Path, rows: dict[str, Any]) -> dict[str, Any]:
    import torch

    logits = {way: torch.load(folder / f"{way}.logits", weights_only=True) for way in rows}
    found = {}
    if {"free", "limited"} <= logits.keys():
        found["limited_equals_free"] = torch.equal(logits["free"], logits["limited"])
    if {"free", "bfloat16"} <= logits.keys():
        difference = (logits["free"] - logits["bfloat16"]).abs().max() / logits["bfloat16"].abs().max()
        found["largest_difference_from_bfloat16"] = float(difference)
    return found


if __name__ == "__main__":
    main()
