"""Where a loaded model's memory is: in the file's pages, shared, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

import aibit_format as aibit

CHILD = textwrap.dedent(
    """
    import gc, json, os, sys, warnings
    warnings.simplefilter("ignore")
    import torch, transformers, bitsandbytes
    import aibit_format as aibit
    import aibit_format.torch.model

    def status(key):
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

    def mapping(path):
        found, values = False, {}
        for line in open("/proc/self/smaps"):
            fields = line.split()
            if not fields[0].endswith(":"):
                found = line.rstrip().endswith(path)
            elif found and fields[0] in ("Shared_Clean:", "Private_Clean:", "Private_Dirty:", "Rss:", "Pss:"):
                values[fields[0][:-1]] = values.get(fields[0][:-1], 0) + int(fields[1]) * 1024
        return values

    path = sys.argv[1]
    aibit.load_model(sys.argv[2])  # whatever is imported or allocated once is there now
    gc.collect()
    before = status("RssAnon")
    model = aibit.load_model(path)
    gc.collect()
    after = status("RssAnon")
    with torch.no_grad():
        model(torch.arange(8)[None])
    print(json.dumps({"before": before, "after": after}), flush=True)
    sys.stdin.readline()
    print(json.dumps(mapping(path)), flush=True)
    sys.stdin.readline()
    """
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(a model of 100 MB of int8 weights, a tiny one to warm up with)."""
    import torch
    import transformers as tf

    folder = tmp_path_factory.mktemp("memory")
    size = {"vocab_size": 4000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
    tiny = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    for name, config in (("large", size), ("tiny", tiny)):
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**config, num_attention_heads=8)).to(torch.float16)
        model.save_pretrained(folder / name)
        del model
        aibit.convert(folder / name, folder / f"{name}.aibit")
    return folder / "large.aibit", folder / "tiny.aibit"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_no_memory_and_two_processes_share_the_pages(models):
    large, tiny = models
    command = [sys.executable, "-c", CHILD, str(large), str(tiny)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    try:
        loaded = [json.loads(child.stdout.readline()) for child in children]
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        mapped = [json.loads(child.stdout.readline()) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
    weights = large.stat().st_size
    assert weights > 100e6
    for figures in loaded:
        assert figures["after"] - figures["before"] < 0.05 * figures["before"]
    for figures in mapped:
        assert figures["Rss"] > 0.9 * weights  # the forward touched them all...
        assert figures["Shared_Clean"] > 0.99 * figures["Rss"]  # ...and both processes have the same ones
        assert figures["Private_Dirty"] == 0
