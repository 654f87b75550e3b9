"""Loading, converting and building modules in many threads at once: none sees what another does."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import aibit_format as aibit
from tests.support import architectures

THREADS = 16
KINDS = {"llama-tied": torch.float32, "llama-untied": torch.bfloat16, "gpt2": torch.float16, "mixtral": torch.bfloat16}
IDS = torch.arange(1, 9)[None]


def state_of_torch():
    """What a thread would see of another's patches."""
    module, init = torch.nn.Module, torch.nn.init
    names = {name: value for name, value in vars(init).items() if callable(value)}
    hooks = dict(torch.nn.modules.module._global_parameter_registration_hooks)
    kept = (module.register_parameter, module.register_buffer, module.__setattr__, torch.nn.Parameter, torch.linspace)
    return kept, names, hooks, torch.get_default_dtype(), torch.get_default_device(), torch.nn.Linear.__init__


def outputs(path):
    model = aibit.load_model(path)
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("threads")
    for kind, dtype in KINDS.items():
        architectures.save(kind, folder / kind, dtype)
        aibit.convert(folder / kind, folder / f"{kind}.aibit")
    return folder


def test_sixteen_threads_load_convert_and_build_side_by_side(models, tmp_path):
    expected = {kind: outputs(models / f"{kind}.aibit") for kind in KINDS}
    digests = {kind: hashlib.sha256((models / f"{kind}.aibit").read_bytes()).digest() for kind in KINDS}
    before, together, done = state_of_torch(), threading.Barrier(THREADS), threading.Event()

    def load(index):
        for turn in range(3):
            kind = list(KINDS)[(index + turn) % len(KINDS)]
            assert torch.equal(outputs(models / f"{kind}.aibit"), expected[kind])

    def convert(index):
        for turn in range(2):
            kind = list(KINDS)[(index + turn) % len(KINDS)]
            aibit.convert(models / kind, tmp_path / f"{index}-{turn}.aibit")
            found = hashlib.sha256((tmp_path / f"{index}-{turn}.aibit").read_bytes()).digest()
            assert found == digests[kind]

    def build(_):
        while not done.is_set():
            module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Embedding(4, 2), torch.nn.BatchNorm1d(2))
            for value in (*module.parameters(), *module.buffers()):
                assert value.device.type == "cpu" and value.dtype in (torch.float32, torch.int64)
            assert module[0].weight.abs().max() > 0 and module[1].weight.std() > 0  # it was initialized
            assert state_of_torch() == before
            time.sleep(0.01)  # let others have the interpreter

    def run(work, index):
        together.wait()
        return work(index)

    with ThreadPoolExecutor(THREADS) as threads:
        builders = [threads.submit(run, build, index) for index in range(4)]
        others = [threads.submit(run, (load, load, convert)[index % 3], index) for index in range(12)]
        try:
            for future in others:
                future.result()
        finally:
            done.set()
        for future in builders:
            future.result()
    assert state_of_torch() == before


def test_a_thread_that_fails_leaves_nothing_behind(tmp_path):
    before = state_of_torch()
    architectures.save("llama-untied", tmp_path / "hf")
    text = (tmp_path / "hf" / "config.json").read_text()
    (tmp_path / "hf" / "config.json").write_text(text.replace('"silu"', '"no-such-activation"'))
    with pytest.raises(aibit.AibitError, match="cannot be built from it"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    assert state_of_torch() == before
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
