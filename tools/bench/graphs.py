"""Measures stored graphs: ``python -m tools.bench.graphs FILE.aibit [--original DIR] [--gguf FILE] [--output JSON]``.

FILE has a graph. Each way runs in a process of its own, in turn, and the medians count: seconds of ``aibit run`` to the
first token, and seconds of the processor for each token of the graph, of the eager model with ``weight_only``, and of
transformers in bf16 where the original is there, and of llama.cpp where its package is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.bench import llama

_PROMPT, _TOKENS = 32, 48
_ROUNDS = 3
_TEXT = "If the file is open, "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--original", help="the directory, for transformers in bf16")
    parser.add_argument("--gguf", help="the same model, for llama.cpp")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a way, in this process
    args = parser.parse_args()
    if args.only:
        path = {"transformers": args.original, "llama.cpp": args.gguf}.get(args.only, args.file)
        print(json.dumps(token(args.only, path)))
        return 0
    ways = ["graph", "eager"]
    ways += ["transformers"] if args.original else []
    ways += ["llama.cpp"] if args.gguf and llama.installed() else []
    found: dict[str, Any] = {"load_before": os.getloadavg(), "cores": len(os.sched_getaffinity(0)), "torch_threads": 1}
    starts: dict[str, list[float]] = {"graph": [], "eager": []}
    tokens: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, times in starts.items():
            times.append(_start(args.file, way))
        for way, results in tokens.items():
            command = [sys.executable, "-m", "tools.bench.graphs", *sys.argv[1:], "--only", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    found["start_seconds"] = {way: statistics.median(times) for way, times in starts.items()}
    found["token"] = {
        way: {key: statistics.median(each[key] for each in results) for key in results[0]}
        for way, results in tokens.items()
    }
    found["load_after"] = os.getloadavg()
    text = json.dumps(found, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")
    return 0


def _start(path: str, way: str) -> float:
    """Return seconds from the start of a process to the end of it, with one token generated."""
    options = ["--graph"] if way == "graph" else ["--weight-only"]
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "aibit_format", "run", *options, path, _TEXT, "-n", "1"], check=True, capture_output=True
    )
    return time.perf_counter() - begun


def token(way: str, path: str) -> dict[str, float]:
    """Return the seconds of a token, by the clock and of the processor."""
    if way == "llama.cpp":
        spent: list[float] = []
        clock = 0.0
        for count in (1, 1, 1 + _TOKENS):  # as below, each several times
            begun = time.process_time()
            clock = llama.llama(path, _PROMPT, count, [])["token"]
            spent.append(time.process_time() - begun)
        return {"clock": clock, "processor": (spent[2] - spent[1]) / (_TOKENS * llama.ROUNDS)}
    import torch

    import aibit_format as aibit

    if way == "graph":
        model: Any = aibit.load_graph(path)
        options: dict[str, Any] = {"eos_token_id": ()}
    elif way == "eager":
        model, options = aibit.load_model(path, weight_only=True), {"do_sample": False, "eos_token_id": -1}
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        options = {"do_sample": False, "eos_token_id": -1}
    times = []
    for count in (1, 1, 1 + _TOKENS):  # the first touch of pages, a prompt, and a prompt with tokens after it
        ids = torch.arange(1, _PROMPT + 1)[None] + len(times)  # no beginning is shared
        begun = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=count, **options)
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    clock, processor = ((times[2][i] - times[1][i]) / _TOKENS for i in range(2))
    return {"clock": clock, "processor": processor}


if __name__ == "__main__":
    sys.exit(main())
