"""Several processes with one model: outputs, and which bytes of the file each of them reads.

Run as a program, this is one of the processes: ``python -m tests.torch.load.test_tensor_parallel FOLDER``,
with the environment that torchrun makes.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.torch.load import tensor_parallel
from tests.support import architectures

COUNT = 2
_SIZES = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Name -> configuration. Keys and values of "llama" have enough rows that a half of nf4 is still whole tiles.
MODELS = {
    "llama": lambda: tf.LlamaConfig(**_SIZES),
    "tied": lambda: tf.LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "odd": lambda: tf.LlamaConfig(**_SIZES | {"vocab_size": 161}),
    "qwen2": lambda: tf.Qwen2Config(**_SIZES, num_key_value_heads=2),
    "phi3": lambda: tf.Phi3Config(**_SIZES),
    "mixtral": lambda: tf.MixtralConfig(**_SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(
        **_SIZES, num_key_value_heads=2, num_experts=8, num_experts_per_tok=4, moe_intermediate_size=64, head_dim=16),
    "gpt-oss": lambda: tf.GptOssConfig(
        **_SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=3, head_dim=16,
        layer_types=["sliding_attention", "full_attention"]),
    "odd-experts": lambda: tf.Qwen3MoeConfig(
        **_SIZES, num_key_value_heads=2, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=64, head_dim=16),
    "one-key-head": lambda: tf.LlamaConfig(**_SIZES, num_key_value_heads=1),
    "opt": lambda: tf.OPTConfig(vocab_size=160, hidden_size=64, ffn_dim=128, num_hidden_layers=2,
                                num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=64),
}  # fmt: skip
# No sum is split, so outputs are equal, to the last bit.
EQUAL = [
    *(("llama", scheme) for scheme in (
        "f32", "bf16", "int8", "int8-absmax", "int8-absmax,group=tensor", "int8-outlier,threshold=3",
        "int4-group,group=32", "fp8-e4m3", "nf4", "nf4,nested=1", "nf4-cpu", "gguf:q8_0", "cluster",
        "fp8-block,rows=16,columns=32", "int-group,group=32,zero=code", "mxfp4", "nvfp4", "ternary")),
    *(("qwen2", scheme) for scheme in ("bf16", "int8", "gguf:q8_0", "int8-absmax")),
    ("tied", "int8"), ("odd", "int8"), ("phi3", "int8"), ("odd-experts", "int8"),
]  # fmt: skip
# What a token's experts found is added up in another order.
EXPERTS = [
    ("mixtral", "f32"), ("mixtral", "int8"), ("mixtral", "nf4"), ("qwen3-moe", "bf16"), ("qwen3-moe", "int8-absmax"),
    ("qwen3-moe", "gguf:q8_0"), ("qwen3-moe", "int4-group,group=32"), ("gpt-oss", "mxfp4"), ("gpt-oss", "f32"),
]  # fmt: skip
# bitsandbytes has a kernel for whole tiles of nf4 and another for other shapes: the halves of qwen2's keys and values,
# 16 rows of 64, get the second. They differ by roundings to bf16.
CLOSE = [("qwen2", "nf4"), ("qwen2", "nf4,nested=1")]
CASES = EQUAL + CLOSE + EXPERTS
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
CUT = {"odd": PROJECTIONS, "gpt-oss": (".experts.", "lm_head")}  # the whole plan of transformers for the latter


class Recorded:
    """A storage that remembers what was read."""

    def __init__(self, storage):
        self.storage, self.reads = storage, []

    def __getattr__(self, name):
        return getattr(self.storage, name)

    def read_at(self, offset, length):
        self.reads.append((offset, length))
        return self.storage.read_at(offset, length)

    def writable(self):
        found = Recorded(self.storage.writable())
        found.reads = self.reads
        return found


def path_of(folder, name, scheme):
    return pathlib.Path(folder) / f"{name}-{scheme}.aibit"


def message(call):
    """What a refusal says."""
    with pytest.raises(LoadError) as caught:
        call()
    return str(caught.value)


def run_rank(folder):
    """One process of COUNT: each case whole and cut, and what is refused."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found, reads = {}, {}
    for name, scheme in CASES:
        file = aibit.open(path_of(folder, name, scheme))
        file.storage = Recorded(file.storage)
        model = aibit.load_model(file, tp="auto")
        key = f"{name} {scheme}"
        reads[key] = file.storage.reads
        found[f"{key} cut"] = architectures.output(model, name)
        found[f"{key} whole"] = architectures.output(aibit.load_model(file.path), name)
    path, ids = path_of(folder, "llama", "int8"), architectures.inputs("llama")["input_ids"]
    mesh = init_device_mesh("cpu", (1, COUNT), mesh_dim_names=("dp", "tp"))
    group = dist.new_group(list(range(COUNT)))
    for key, tp in (("count", COUNT), ("mesh", mesh), ("mesh of one", mesh["tp"]), ("group", group)):
        model = aibit.load_model(path, tp=tp)
        more = {"cache_implementation": "static"} if key == "count" else {}
        found[f"tokens {key}"] = model.generate(ids, max_new_tokens=6, do_sample=False, **more)
    found["tokens whole"] = aibit.load_model(path).generate(ids, max_new_tokens=6, do_sample=False)
    with pytest.raises(IndexError):
        model(torch.tensor([[160]]))
    alone = [dist.new_group([rank]) for rank in range(COUNT)]
    single = aibit.load_model(path, tp=alone[dist.get_rank()])
    assert single.model.layers[0].mlp.up_proj.out_features == 128
    refused = {
        "other count": message(lambda: aibit.load_model(path, tp=3)),
        "word": message(lambda: aibit.load_model(path, tp="all")),
        "other group": message(lambda: aibit.load_model(path, tp=alone[1 - dist.get_rank()])),
        "no plan": message(lambda: aibit.load_model(path_of(folder, "opt", "int8"), tp=2)),
        "one head": message(lambda: aibit.load_model(path_of(folder, "one-key-head", "int8"), tp=2)),
        "saving": message(lambda: model.save_pretrained(folder)),
        "gradients": message(lambda: model(inputs_embeds=torch.zeros(1, 2, 64, requires_grad=True))),
    }
    out = pathlib.Path(folder) / str(dist.get_rank())
    torch.save(found, f"{out}.pt")
    pathlib.Path(f"{out}.json").write_text(json.dumps({"reads": reads, "refused": refused}))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each process found: its folder, outputs, and what it read and refused."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(make(), dtype=torch.float32)
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim >= 2:
                    value.mul_(3)
                    value[..., 1] *= 8  # columns that stand out, so that LLM.int8 finds outliers
                else:
                    value.add_(torch.randn_like(value), alpha=0.1)
        model.save_pretrained(folder / name)
        for _, scheme in {case for case in (*CASES, ("opt", "int8"), ("one-key-head", "int8")) if case[0] == name}:
            source = folder / name
            if scheme == "bf16":
                source = folder / f"{name}-bf16"
                model.to(torch.bfloat16).save_pretrained(source)
            aibit.convert(source, path_of(folder, name, scheme), scheme=scheme)
            model.to(torch.float32)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(COUNT), "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)], stderr=subprocess.PIPE, text=True,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(COUNT)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(error[-3000:] for error in errors)
    outputs = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(COUNT)]
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(COUNT)]
    return folder, outputs, said


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_ranks_give_what_one_process_gives(name, scheme, ranks):
    _, outputs, _ = ranks
    key = f"{name} {scheme}"
    for found in outputs:
        cut, whole = found[f"{key} cut"], found[f"{key} whole"]
        assert cut.shape == whole.shape and cut.isfinite().all()
        if (name, scheme) in CLOSE + EXPERTS:
            bound = 0.02 if scheme in ("bf16", "int8", "nf4", "nf4,nested=1") else 1e-4
            assert (cut - whole).abs().max() <= bound * whole.abs().max()
        else:
            assert torch.equal(cut, whole)
    assert torch.equal(outputs[0][f"{key} cut"], outputs[1][f"{key} cut"])


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_a_rank_reads_its_rows_and_nothing_else_of_what_is_cut(name, scheme, ranks):
    folder, _, said = ranks
    file = aibit.open(path_of(folder, name, scheme))
    touched = np.zeros((COUNT, file.storage.size), np.bool_)
    for rank in range(COUNT):
        for offset, length in said[rank]["reads"][f"{name} {scheme}"]:
            touched[rank, offset : offset + length] = True
    cut_bytes = read_bytes = 0
    for key in file:
        info = file.info(key)
        bulk = info.planes[0]  # codes, blocks or values
        of_bulk = touched[:, bulk.offset : bulk.offset + bulk.length]
        parts = CUT.get(name, (*PROJECTIONS, "lm_head", "embed_tokens"))
        if any(part in key for part in parts) and (name != "odd-experts" or ".experts." not in key):
            assert (of_bulk.sum(1) == bulk.length // COUNT).all() and (of_bulk.sum(0) == 1).all(), key
            cut_bytes += info.nbytes
            read_bytes += sum(touched[0, plane.offset : plane.offset + plane.length].sum() for plane in info.planes)
        else:
            assert of_bulk.all(), key
    # All of it: a scale that belongs to every row, a codebook, nested scales that the other half needs too.
    assert cut_bytes and read_bytes <= 0.53 * cut_bytes


def test_groups_meshes_and_generation(ranks):
    _, outputs, _ = ranks
    for found in outputs:
        for key in ("count", "mesh", "mesh of one", "group"):
            assert torch.equal(found[f"tokens {key}"], found["tokens whole"])


def test_refusals(ranks):
    _, _, said = ranks
    for rank in range(COUNT):
        refused = said[rank]["refused"]
        assert "tp=3: there are 2 processes" in refused["other count"]
        assert "'auto', the number of processes, a process group or a device mesh" in refused["word"]
        assert "there are 2 processes" in refused["other group"]
        assert "no tensor-parallel plan for OPTForCausalLM" in refused["no plan"]
        assert "1 heads do not divide among 2 processes" in refused["one head"]
        assert "cannot be saved" in refused["saving"] and "inference" in refused["gradients"]
    for tp in ("auto", 2):
        assert "not initialized" in message(lambda tp=tp: aibit.load_model(path_of(ranks[0], "llama", "int8"), tp=tp))


def test_an_unknown_style_is_refused(ranks):
    file = aibit.open(path_of(ranks[0], "llama", "int8"))

    class Odd(nn.Module):
        ep_plan = None

        def __init__(self, plan):
            super().__init__()
            self.tp_plan, self.layer = plan, nn.Linear(2, 2)

    for plan in ({"layer": "packed_colwise"}, {"layer.weight": "rowwise"}):
        said = message(lambda plan=plan: tensor_parallel.Slices(file, Odd(plan), tensor_parallel.RankGroup(None, 0, 2)))
        assert "is not known here" in said


if __name__ == "__main__":
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    run_rank(sys.argv[1])
