"""What people wait for: the first token of a whole process, and then each further one."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.bench import foreign, models, probe
from tools.bench.figures import Figure, of_runs
from tools.bench.loaders import loader
from tools.bench.pairing import Bench

_PROMPT = 128  # tokens before the first that is generated
_LONG = 1024  # the same in the row ``context``
_TOKENS = 16  # generated, each timed
_TOKENIZER = probe.ROOT / "fixtures" / "models" / "tiny-llama"  # its ids are below every vocabulary here
_TEXT = "If the file is open, "

# What somebody would write who has a directory and transformers.
_TRANSFORMERS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], device_map="cpu")
batch = tokenizer(sys.argv[2], return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**batch, max_new_tokens=1, do_sample=False)[0]))
"""


def generate(way: str, path: str, tiny: str, batch: int, prompt: int) -> probe.Result:
    """Seconds of a prompt and of each token after it, greedily, with a cache."""
    import torch

    from aibit_format.torch.evaluate import timing

    run = loader(way)
    timing.generate(run(tiny), batch, prompt, 2)
    model = run(path)
    with torch.inference_mode():
        model(torch.ones(1, 8, dtype=torch.long))  # the first touch of mapped pages is the row `load`'s
    first, others = timing.generate(model, batch, prompt, _TOKENS)
    return {"first": first, "token": statistics.median(others)}


# What is shown, a way of ``loaders``, the model, and what its process warms up with.
_Way = tuple[str, str, Path, Path]


def decode(bench: Bench) -> list[Figure]:
    """The row ``decode``."""
    ways: list[_Way] = [
        ("transformers, saved in 8 bits", "saved", bench.saved, bench.tiny_saved),
        ("aibit int8", "aibit", bench.file, bench.tiny_file),
        ("aibit int8, weight only", "weight only", bench.file, bench.tiny_file),
        ("aibit int8-absmax", "aibit", bench.converted("int8-absmax"), bench.tiny_file),
        ("aibit nf4", "aibit", bench.converted("nf4"), bench.tiny_file),
        ("aibit nf4, weight only", "weight only", bench.converted("nf4"), bench.tiny_file),
        ("aibit nf4-cpu", "aibit", bench.converted("nf4-cpu"), bench.tiny_file),
        ("transformers, bf16", "bf16", bench.source, bench.tiny),
    ]
    return [figure for batch in (1, 8) for figure in _generated(bench, ways, batch, _PROMPT)]


def context(bench: Bench) -> list[Figure]:
    """The row ``context``: the cache of a long prompt has to be attended to by each token after it."""
    ways: list[_Way] = [
        ("transformers, saved in 8 bits", "saved", bench.saved, bench.tiny_saved),
        ("aibit int8", "aibit", bench.file, bench.tiny_file),
        ("aibit int8, weight only", "weight only", bench.file, bench.tiny_file),
        ("aibit nf4, weight only", "weight only", bench.converted("nf4"), bench.tiny_file),
    ]
    return _generated(bench, ways, 1, _LONG)


def _generated(bench: Bench, given: list[_Way], batch: int, prompt: int) -> list[Figure]:
    """Three figures of each way, and of llama.cpp."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        label: ("generate", {"way": way, "path": str(path), "tiny": str(tiny), "batch": batch, "prompt": prompt})
        for label, way, path, tiny in given
    }
    found = bench.paired(ways)
    shown = {label: bench.shown(probe.command(*way)) for label, way in ways.items()}
    if batch == 1 and (llama := _llama_bench(bench, prompt)):
        label, shown[label] = "llama.cpp, q8_0", llama[1]
        found[label] = llama[0]
    for run in (run for runs in found.values() for run in runs):
        run["rate"] = batch / run["token"]
    figures = of_runs(found, "first", "s", f", batch {batch}, {prompt} tokens", 1, shown)
    figures += of_runs(found, "token", "ms", f", batch {batch}, each token after {prompt}", 1e-3, shown)
    return figures + of_runs(found, "rate", "tokens/s", f", batch {batch}, after {prompt}", 1, shown)


def _llama_bench(bench: Bench, prompt: int) -> tuple[list[probe.Result], str] | None:
    """The same two figures by llama.cpp's own benchmark, with as many threads; None where it is not installed."""
    program = shutil.which("llama-bench")
    if program is None:
        bench.facts["llama.cpp"] = "no llama-bench on PATH, not measured"
        return None
    path = foreign.gguf_q8_0(models.SHAPES[bench.model], bench.work / f"{bench.model}-q8_0.gguf")
    threads, rates, shown = len(os.sched_getaffinity(0)), {}, []
    models.read_through(path)
    # Tokens are generated after a prompt that is not timed, as long as the one that is.
    for kind, sizes in (("n_prompt", ["-p", prompt, "-n", 0]), ("n_gen", ["-p", 0, "-n", _TOKENS, "-d", prompt])):
        options = [*map(str, sizes), "-t", str(threads), "-r", str(bench.runs), "-o", "json"]
        command = [program, "-m", str(path), *options]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            bench.facts["llama.cpp"] = f"llama-bench ended with {ended.returncode}: {ended.stderr.strip()[-200:]}"
            return None
        test = next(test for test in json.loads(ended.stdout) if test[kind])
        rates[kind] = test["samples_ts"]
        bench.facts["llama.cpp"] = f"build {test.get('build_commit')}, {threads} threads"
        shown.append(bench.shown(["llama-bench", *command[1:]]))
    runs = [
        {"first": prompt / asked, "token": 1 / each}
        for asked, each in zip(rates["n_prompt"], rates["n_gen"], strict=True)
    ]
    return runs, "; ".join(shown)


def first_token(bench: Bench) -> list[Figure]:
    """The row ``first``: whole processes, from start to end, that print one token."""
    source, saved = bench.source, bench.saved
    for folder in (source, saved):
        _give_tokenizer(folder)
    file = bench.converted("int8")  # with the tokenizer, which the file of other rows may lack
    aibit = [sys.executable, "-m", "aibit_format", "run", str(file), _TEXT, "-n", "1"]
    ways = {
        "transformers, its saved 8-bit directory": [sys.executable, "-c", _TRANSFORMERS, str(saved), _TEXT],
        "aibit run, int8": aibit,
        "aibit run --weight-only, int8": [*aibit, "--weight-only"],
        "transformers, float16 directory": [sys.executable, "-c", _TRANSFORMERS, str(source), _TEXT],
    }
    seconds: dict[str, list[float]] = {label: [] for label in ways}
    for i in range(2 * bench.runs + 1):
        for label, command in ways.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, env=probe.environment(), capture_output=True)
            if i:  # the first round fills the page cache
                seconds[label].append(time.perf_counter() - begin)
    shown = {label: bench.shown(command) for label, command in ways.items()}
    base, *others = (Figure(label, "s", samples, None, shown[label]) for label, samples in seconds.items())
    return [base, *(Figure(f.label, "s", f.samples, base, f.command) for f in others)]


def _give_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            shutil.copy(_TOKENIZER / name, folder / name)


ROWS = {"decode": decode, "context": context, "first": first_token}
ABOUT = {
    "decode": "tokens, one after the other, and a prompt of 128: batch 1 and 8",
    "context": "the same with a prompt of 1,024, batch 1",
    "first": "whole processes to the first token",
}
