"""Measures graphs in onnxruntime: ``python -m tools.bench.onnx_graphs FILE.aibit [--output JSON]``.

FILE has a graph. It is exported packed with either accuracy, decoded, and in place, and each runs in a process of its
own on one thread, beside the stored graph itself: seconds of the processor for a token, seconds until the session is
there, private and shared resident bytes after that, bytes on disk, and the mean divergence of the logits of 64
tokens from those of the file in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench import probe
from tools.bench.graphs import token

WAYS: dict[str, dict[str, Any]] = {
    "packed": {}, "packed, inputs in float32": {"accuracy": 0}, "decoded": {"decoded": True},
    "in place": {"in_place": True},
}  # fmt: skip
_CONTEXT, _TOKENS, _ROUNDS = 64, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)  # a graph, in this process
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(_run(arguments.run, arguments.file)))
        return
    import aibit_format as aibit

    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.file.parent) as folder:
        source = Path(folder) / "m.aibit"
        os.link(arguments.file, source)  # in place, it has to be beside the graph
        paths = {way: Path(folder) / f"{i}.onnx" for i, way in enumerate(WAYS)}
        for way, options in WAYS.items():
            files = aibit.export(source, "onnx", paths[way], **options)
            rows[way] = {"bytes": sum(map(os.path.getsize, files)), "runs": []}
        rows["stored graph"] = {"bytes": os.path.getsize(source), "runs": []}
        for _ in range(_ROUNDS):
            for way, row in rows.items():
                if way == "stored graph":
                    row["runs"].append({"token_seconds": token("graph", str(source))["processor"]})
                    continue
                command = [sys.executable, "-m", "tools.bench.onnx_graphs", str(source), "--run", str(paths[way])]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row["runs"].append(json.loads(done.stdout.splitlines()[-1]))
    for row in rows.values():
        runs = row.pop("runs")
        row |= {key: statistics.median(each[key] for each in runs) for key in runs[0]}
    found = {"file": arguments.file.name, "load": os.getloadavg(), "rows": rows}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def _run(path: str, original: Path) -> dict[str, float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    begun = time.process_time()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = {"session_seconds": time.process_time() - begun}
    names = [each.name for each in session.get_outputs()]
    past = {
        each.name: np.zeros([1, each.shape[1], 0, each.shape[3]], np.float32)
        for each in session.get_inputs() if each.name.startswith("past_key_values.")
    }  # fmt: skip
    ids = np.arange(100, 100 + _CONTEXT)[None]
    spent, logits = [], None
    for step in range(_TOKENS + 1):
        places = np.arange(_CONTEXT)[None] if logits is None else np.array([[_CONTEXT + step - 1]])
        begun = time.process_time()
        values = dict(zip(names, session.run(None, {"input_ids": ids, "position_ids": places, **past}), strict=True))
        spent.append(time.process_time() - begun)
        past = {name.replace("present", "past_key_values"): values[name] for name in names[1:]}
        logits = values["logits"] if logits is None else logits
        ids = values["logits"][:, -1:].argmax(-1)
    private, shared = probe.resident()
    found |= {"prompt_seconds": spent[0], "token_seconds": statistics.median(spent[1:])}
    return found | {"private": private, "shared": shared, "divergence": _divergence(original, logits)}


def _divergence(original: Path, logits: Any) -> float:
    import torch

    import aibit_format as aibit

    model = aibit.load_model(original, weight_only=True, dtype="float32")
    with torch.inference_mode():
        wanted = model(torch.arange(100, 100 + _CONTEXT)[None]).logits[0].double().log_softmax(-1)
    found = torch.from_numpy(logits)[0].double().log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


if __name__ == "__main__":
    main()
