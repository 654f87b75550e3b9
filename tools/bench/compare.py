"""Compare the speed of two checkouts: ``python -m tools.bench.compare OTHER [--runs 7] [--model 1.1b]``.

OTHER is a checkout of the repository with its compiled code built (``pip install -e OTHER`` builds it). Each round runs
one process in either, in an order that alternates; what is printed is the median of each, and the median of the ratios
taken round by round. Processes use the public functions alone, so that a checkout of any age can take part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import ROOT
from tools.bench import models
from tools.bench.machine import machine

# Seconds of each, printed as JSON; "first" is the whole process, taken from outside.
_PROCESS = """
import sys, time
source, folder, warm = sys.argv[1:]
begun = time.perf_counter()
import json, os, aibit_format as aibit
seconds = {"import": time.perf_counter() - begun}

def timed(name, function, times=1):
    best = []
    for _ in range(times):
        begun = time.perf_counter()
        result = function()
        best.append(time.perf_counter() - begun)
    seconds[name] = min(best)
    return result

path = folder + "/m.aibit"
if warm == "first":
    model = aibit.load_model(path)
    import torch
    with torch.inference_mode():
        model(torch.arange(1, 9)[None])
    os._exit(0)
timed("open", lambda: aibit.open(path), 20)
timed("verify", lambda: aibit.open(path, verify="full"), 3)
import torch, transformers
aibit.load_model(warm)
model = timed("load", lambda: aibit.load_model(path), 5)
ids = torch.arange(1, 33)[None]
with torch.inference_mode():
    timed("first forward", lambda: model(ids))
    timed("prompt of 32", lambda: model(ids), 3)
    cache = model(ids, use_cache=True).past_key_values
    token = torch.tensor([[5]])
    timed("token", lambda: model(token, past_key_values=cache), 16)
aibit.convert(warm, folder + "/w.aibit", scheme="int8", overwrite=True)
timed("convert int8", lambda: aibit.convert(source, folder + "/int8.aibit", scheme="int8", overwrite=True), 2)
timed("convert nf4", lambda: aibit.convert(source, folder + "/nf4.aibit", scheme="nf4", overwrite=True))
print(json.dumps(seconds))
"""


def process(checkout: Path, *arguments: str) -> tuple[float, str]:
    """Run the process in a checkout: seconds of all of it, and what it printed."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    begun = os.times().elapsed
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, *arguments], env=environment, cwd=checkout, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr}")
    return os.times().elapsed - begun, done.stdout


def seconds(checkout: Path, source: Path, folder: Path, warm: Path) -> dict[str, float]:
    """Measure everything in a checkout once."""
    found = json.loads(process(checkout, str(source), str(folder), str(warm))[1])
    return found | {"first": process(checkout, str(source), str(folder), "first")[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, help="a checkout to compare this one with")
    parser.add_argument("--model", choices=models.SHAPES, default="1.1b")
    parser.add_argument("--runs", type=int, default=7, help="rounds (default: 7)")
    work = Path(tempfile.gettempdir()) / "bench"
    parser.add_argument("--work", type=Path, default=work, help="where the model is made")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a file system in memory")  # noqa: S108
    parser.add_argument("--out", type=Path, default=Path("compare.json"), help="the JSON (default: compare.json)")
    given = parser.parse_args()
    source, tiny = models.checkpoint(given.model, given.work), models.checkpoint("tiny", given.work)
    found: dict[str, dict[str, list[float]]] = {"this": {}, "other": {}}
    with tempfile.TemporaryDirectory(dir=given.memory) as name:
        folder, warm = Path(name), Path(name) / "tiny.aibit"
        for what, path in ((source, folder / "m.aibit"), (tiny, warm)):
            program = f"import aibit_format as aibit; aibit.convert({str(what)!r}, {str(path)!r}, scheme='int8')"
            subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
        for k in range(given.runs + 1):
            order = [("this", ROOT), ("other", given.other.resolve())]
            for label, checkout in order if k % 2 else order[::-1]:
                for row, value in seconds(checkout, source, folder, warm).items():
                    if k:  # the first round warms caches up
                        found[label].setdefault(row, []).append(value)
    print(f"{'':16}{'this, s':>10}{'other, s':>10}{'this/other':>12}")
    ratios = {}
    for row, ours in found["this"].items():
        theirs = found["other"][row]
        ratios[row] = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{row:16}{statistics.median(ours):10.4f}{statistics.median(theirs):10.4f}{ratios[row]:12.3f}")
    result = {"machine": machine(), "model": given.model, "runs": given.runs, "ratios": ratios, "seconds": found}
    given.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
