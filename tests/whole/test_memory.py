"""Where a loaded model's memory is: in the file's pages, shared, and nowhere else. And what a conversion takes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.formats.exports import export
from tools.bench import foreign
from tools.bench import models as made

CHILD = textwrap.dedent(
    """
    import gc, json, os, sys, warnings
    warnings.simplefilter("ignore")
    import torch, transformers, bitsandbytes
    import aibit_format as aibit
    import aibit_format.torch.load.build

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


CONVERTER = textwrap.dedent(
    """
    import gc, json, sys
    import aibit_format as aibit

    for line in sys.stdin:
        aibit.convert(*json.loads(line), jobs=1, overwrite=True)
        gc.collect()
        print("done", flush=True)
    """
)
# What is freed goes back to the system at once: what is seen is what is held, not what the allocator keeps.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
LAYERS = 4, 8
SHAPES = [made.Shape(1024, 512, 1536, layers, 8, 8) for layers in LAYERS]  # 29 and 57 MB of float16
LARGEST = 4 * 512 * 1536  # bytes of the largest tensor as float32: 3 MB
# Label -> what makes the source in a folder, of a float16 checkpoint there and its shape; and the scheme.
PAIRS = {
    "huggingface to nf4": (lambda folder, _: folder / "float16", "nf4"),
    "bitsandbytes 8 bit": (lambda folder, _: exported(folder), None),
    "gguf q8_0 to int8": (lambda folder, shape: foreign.gguf_q8_0(shape, folder / "q8_0.gguf"), "int8"),
    "aibit int8 to nf4": (lambda folder, _: folder / "int8.aibit", "nf4"),
    "pytorch_model.bin to int8": (lambda folder, _: foreign.pytorch_bin(folder / "float16", folder / "bin"), "int8"),
    "gptq": (lambda folder, shape: foreign.four_bit_words("gptq", shape, folder / "gptq"), None),
}


def exported(folder: Path) -> Path:
    with aibit.open(folder / "int8.aibit") as file:
        export(file, "huggingface", folder / "bitsandbytes")
    return folder / "bitsandbytes"


def anonymous(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


@pytest.fixture(scope="module")
def gains(tmp_path_factory):
    """Pair -> anonymous memory that a conversion takes at its highest, for each number of layers."""
    folders = [tmp_path_factory.mktemp(f"layers-{layers}") for layers in LAYERS]
    for folder, shape in zip(folders, SHAPES, strict=True):
        (folder / "float16").mkdir()
        weights = made.normal(np.random.default_rng(0))
        made.write_safetensors(folder / "float16" / "model.safetensors", made.float16(shape), weights)
        made.write_config(folder / "float16", shape)
        aibit.convert(folder / "float16", folder / "int8.aibit")
    found = {}
    command, pipe = [sys.executable, "-c", CONVERTER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | ALLOCATOR) as child:

        def convert(source: Path, scheme: str | None) -> int:
            target = source.parent / "out.aibit"
            before = peak = anonymous(child.pid)
            child.stdin.write(json.dumps([str(source), str(target), scheme]).encode() + b"\n")
            child.stdin.flush()
            while not select.select([child.stdout], [], [], 0.001)[0]:  # from outside: a thread would wait for the GIL
                peak = max(peak, anonymous(child.pid))
            assert child.stdout.readline() == b"done\n"
            target.unlink()
            return peak - before

        for label, (make, scheme) in PAIRS.items():
            small, large = (make(folder, shape) for folder, shape in zip(folders, SHAPES, strict=True))
            convert(small, scheme)  # imports, and what is allocated once
            found[label] = convert(small, scheme), convert(large, scheme)
        child.stdin.close()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("pair", PAIRS)
def test_a_conversion_holds_a_tensor_at_a_time(pair, gains):
    small, large = gains[pair]
    assert small < 4 * LARGEST  # decoded, rounded, encoded, and the pieces these steps work on
    assert large - small < LARGEST  # more layers are 7 MB of nf4 planes, 14 of int8
