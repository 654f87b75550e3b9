"""The command ``aibit inspect``."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from tests.support.command import run
from tests.support.command_models import model as model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4976698672\n"


def test_inspect_lists_what_is_there(model, capsys):
    status, out, _ = run("inspect", model / "m.aibit", capsys=capsys)
    assert status == 0 and "LlamaForCausalLM" in out and "= model.embed_tokens.weight" in out and "config.json" in out
    status, out, _ = run("show", model / "m.aibit", "--json", capsys=capsys)
    found = json.loads(out)
    assert status == 0 and found["format"] == "aibit 1.0" and len(found["root"]) == 32
    codes = next(t for t in found["tensors"] if t["name"].endswith("0.mlp.up_proj.weight"))
    assert [plane[0] for plane in codes["planes"]] == ["codes", "row_absmax"]


def test_inspect_reads_safetensors_too(model, capsys):
    status, out, _ = run("inspect", model / "hf" / "model.safetensors", "--json", capsys=capsys)
    found = json.loads(out)
    assert status == 0 and found["format"] == "safetensors"
    assert {t["scheme"] for t in found["tensors"]} == {"f16"}
    assert sum(t["bytes"] for t in found["tensors"]) < found["size"]


@pytest.fixture
def gguf_file(tmp_path):
    """A small GGUF file, written by gguf-py."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a name")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "\x1b[2Jc"])
    writer.add_tensor("plain", np.ones((3, 64), np.float32))
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def test_inspect_reads_gguf_too(gguf_file, capsys):
    status, out, _ = run("inspect", gguf_file, "--json", capsys=capsys)
    found = json.loads(out)
    assert status == 0 and found["format"] == "GGUF 3" and found["metadata"]["llama.block_count"] == 2
    rows = {t["name"]: (t["shape"], t["scheme"], t["bytes"]) for t in found["tensors"]}
    assert rows == {"plain": ([3, 64], "f32", 768), "blk.0.attn_q.weight": ([4, 64], "q8_0", 272)}
    status, out, _ = run("inspect", gguf_file, capsys=capsys)
    assert status == 0 and "\x1b" not in out


def test_every_truncation_of_a_gguf_header_is_an_error_of_ours(gguf_file, tmp_path, capsys):
    data = gguf_file.read_bytes()
    header = data.index(b"blk.0.attn_q.weight") + 50
    for length in range(4, header, 7):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(data[:length])
        status, _, err = run("inspect", cut, capsys=capsys)
        assert status in (1, 3) and "aibit: " in err


def test_inspect_reads_directories_too(model, capsys):
    status, out, _ = run("inspect", model / "hf", "--json", capsys=capsys)
    found = json.loads(out)
    assert status == 0 and found["format"] == "directory (huggingface)" and "config.json" in found["documents"]
    assert found["metadata"]["architectures"] == ["LlamaForCausalLM"]
    assert {t["scheme"] for t in found["tensors"]} == {"f16"}
    status, out, _ = run("inspect", model / "hf", capsys=capsys)
    assert status == 0 and "model.embed_tokens.weight" in out


def test_a_pointer_of_git_lfs_and_a_directory_are_named(model, tmp_path, capsys):
    (tmp_path / "m.aibit").write_text(POINTER)
    for verb in ("inspect", "extract"):
        status, _, err = run(verb, tmp_path / "m.aibit", capsys=capsys)
        assert status == 3 and "Git LFS pointer to a file of 4976698672 bytes" in err and "git lfs pull" in err
    status, _, err = run("extract", model / "hf", capsys=capsys)
    assert status == 1 and "aibit convert" in err
