"""The command line as a person uses it: results, messages, exit status."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import subprocess
import sys

import architectures
import gguf
import numpy as np
import pytest
import torch
from command import run

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.cli.convert import _rule


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small checkpoint ``hf`` and its file ``m.aibit``."""
    folder = tmp_path_factory.mktemp("cli")
    architectures.save("llama-tied", folder / "hf", torch.float16)
    aibit.convert(folder / "hf", folder / "m.aibit")
    return folder


def test_convert_says_what_it_did(model, tmp_path, capsys):
    status, out, err = run("convert", model / "hf", "-o", tmp_path / "m.aibit", capsys=capsys)
    assert status == 0 and err == ""
    assert "model.layers.0.self_attn.q_proj.weight" in out and "rms error" in out
    assert "tensors: 14 quantized" in out and "1 tied" in out and "memory saved" in out and "ratio" in out
    assert (tmp_path / "m.aibit").read_bytes() == (model / "m.aibit").read_bytes()


def test_convert_json_holds_the_same(model, tmp_path, capsys):
    status, out, _ = run("convert", model / "hf", "-o", tmp_path / "m.aibit", "--json", capsys=capsys)
    report = json.loads(out)
    assert status == 0 and report["compression_ratio"] > 1
    assert report["memory_saved_bytes"] == report["original_bytes"] - report["quantized_bytes"]
    lossy = [t for t in report["tensors"] if t["error"]]
    assert len(lossy) == 14 and all(0 < t["error"]["relative_rms"] < 0.1 for t in lossy)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mlp=bf16", ("mlp", "bf16")),
        ("mlp=nf4,block_size=128,nested=1", ("mlp", "nf4,block_size=128,nested=1")),
        ("mlp=nf4,nested", ("mlp", "nf4,nested")),
        ("(?=a)b=nf4,nested=1", ("(?=a)b", "nf4,nested=1")),
        (r"x=y\.z=keep", (r"x=y\.z", "keep")),
    ],
)
def test_a_rule_may_have_parameters(text, wanted):
    assert _rule(text) == wanted


def test_dry_run_writes_nothing_and_its_sizes_are_those_of_the_file(model, tmp_path, capsys):
    os.chdir(tmp_path)
    status, out, _ = run("convert", model / "hf", "--dry-run", "--json", "--tensor", "mlp=bf16", capsys=capsys)
    assert status == 0 and list(tmp_path.iterdir()) == []
    plan = json.loads(out)
    schemes = {t["name"]: t["scheme"] for t in plan["tensors"]}
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "bf16"
    _, out, _ = run("convert", model / "hf", "--dry-run", "--json", capsys=capsys)
    with aibit.open(model / "m.aibit") as file:
        stored = sum(file.info(name).nbytes for name in file if file.info(name).alias_of is None)
    assert json.loads(out)["quantized_bytes"] == stored


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["convert", "{hf}"], 2, "-o OUT"),
        (["convert", "{hf}", "-o", "x", "--scheme", "int9"], 2, "unknown scheme 'int9'"),
        (["convert", "{hf}", "-o", "x", "--tensor", "mlp"], 2, "not REGEX=SCHEME"),
        (["convert", "{hf}", "-o", "x", "--tensor", "(=int8"], 2, "not a regular expression"),
        (["convert", "{hf}", "-o", "x", "--tensor", "nowhere=int8"], 2, "matches no tensor"),
        (["convert", "{hf}", "-o", "x", "--jobs", "0"], 2, "positive"),
        (["convert", "{hf}/config.json", "-o", "x"], 1, "not a source"),
        (["convert", "nowhere", "-o", "x"], 1, "no such file"),
        (["convert", "{hf}", "-o", "{file}"], 1, "exists"),
        (["convert", "{hf}", "-o", "no/such/folder/x"], 1, "No such file or directory"),
        (["inspect", "nowhere.aibit"], 1, "No such file"),
        (["inspect", "."], 1, "not a regular file"),
        (["inspect", "{text}"], 3, "AIB-E102"),
        (["run", "{text}", "hello"], 3, "AIB-E102"),
        (["extract", "{file}", "nothing.txt"], 1, "nothing called"),
        (["run", "{file}", "hello"], 1, "no tokenizer"),
        (["bench", "{text}"], 3, "AIB-E102"),
        (["bench", "{file}", "-p", "0"], 2, "'0' is not a positive number"),
        (["bench", "{file}", "-o", "xml"], 2, "invalid choice"),
        (["bench", "{file}", "-p", "60", "-n", "5"], 1, "60 and 5 tokens, the model takes 64"),
        (["frobnicate"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_gets_a_message_and_a_status(arguments, status, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("not a model, only some text " * 9)
    places = {"hf": model / "hf", "file": model / "m.aibit", "text": tmp_path / "text"}
    found, out, err = run(*[a.format(**places) for a in arguments], capsys=capsys)
    assert found == status and message in err and out == ""
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


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


def test_verify_says_what_it_checked_and_what_not(model, tmp_path, capsys):
    status, out, _ = run("verify", model / "m.aibit", capsys=capsys)
    assert status == 0 and "valid" in out and "not checked: where the file came from" in out
    damaged = bytearray((model / "m.aibit").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "d.aibit").write_bytes(damaged)
    status, out, _ = run("verify", tmp_path / "d.aibit", model / "m.aibit", "--json", capsys=capsys)
    first, second = json.loads(out)
    assert status == 3 and not first["valid"] and first["problems"][0]["code"] == "AIB-E602" and second["valid"]
    status, out, _ = run("verify", tmp_path / "d.aibit", "--level", "structure", capsys=capsys)
    assert status == 0 and "not checked: the checksums, padding and values of documents and planes" in out


def test_extract_gives_documents_and_tensors_back(model, tmp_path, capsys):
    status, _, _ = run(
        "extract", model / "m.aibit", "-o", tmp_path, "--tensor", "model.norm.weight", capsys=capsys
    )
    assert status == 0
    assert np.load(tmp_path / "model.norm.weight.npy").shape == (64,)
    status, _, _ = run("extract", model / "m.aibit", "-o", tmp_path, capsys=capsys)
    assert status == 0
    assert (tmp_path / "config.json").read_bytes() == (model / "hf" / "config.json").read_bytes()
    status, _, err = run("extract", model / "m.aibit", "-o", tmp_path, capsys=capsys)
    assert status == 1 and "exists" in err


def shell(*arguments, **options):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "aibit_format", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory, fixtures):
    """The fixture Llama, converted."""
    file = tmp_path_factory.mktemp("chatty") / "tiny-llama.aibit"
    aibit.convert(fixtures / "models" / "tiny-llama", file)
    return file


def test_run_streams_text(chatty):
    done = shell("run", chatty, "The ", "-n", "12")
    assert done.returncode == 0 and done.stdout.startswith("The ") and len(done.stdout.split()) > 4
    assert "12 tokens in" in done.stderr and "Warning" not in done.stderr and "MatMul" not in done.stderr
    again = shell("run", chatty, "--json", "-n", "12", input="The ")
    result = json.loads(again.stdout)
    assert result["new_tokens"] == 12 and ("The " + result["text"]).split() == done.stdout.split()


def test_run_uses_the_chat_template(chatty):
    plain = json.loads(shell("run", chatty, "What is a list?", "-n", "8", "--json").stdout)
    chat = json.loads(shell("run", chatty, "What is a list?", "-n", "8", "--json", "--chat").stdout)
    assert chat["new_tokens"] > 0 and chat["text"] != plain["text"]


def test_output_that_nobody_reads_is_no_error(model):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "aibit_format", "inspect", str(model / "m.aibit"), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == "" and done.returncode == 0


def test_verbose_shows_the_traceback(tmp_path):
    path = pathlib.Path(tmp_path, "x.aibit")
    path.write_text("nothing of the kind, but long enough to be looked at")
    assert "Traceback" not in shell("inspect", path).stderr
    assert "Traceback" in shell("inspect", path, "-v").stderr


def test_the_prompt_may_follow_options(fixtures, tmp_path, capsys):
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit")
    first = run("run", tmp_path / "m.aibit", "a b", "-n", "3", "--json", capsys=capsys)
    second = run("run", tmp_path / "m.aibit", "-n", "3", "--json", "a b", capsys=capsys)
    assert first[0] == second[0] == 0 and json.loads(first[1])["text"] == json.loads(second[1])["text"]
    for extra in (["a", "b"], ["--wrong"]):
        with pytest.raises(SystemExit) as caught:
            main(["run", str(tmp_path / "m.aibit"), "-n", "3", *extra, "c"])
        assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["int8", "nf4", "int8-absmax", "gguf:q8_0"])
def test_a_lean_start_gives_the_same_text(scheme, fixtures, tmp_path):
    """Whole processes: with stand-ins for what running a model does not use, and with the real modules."""
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit", scheme=scheme)
    command = [sys.executable, "-c", _RUN, str(tmp_path / "m.aibit")]
    texts, modules = [], []
    for setting in ({}, {"AIBIT_FULL_IMPORTS": "1"}):
        done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True, check=True)
        text, count = done.stdout.rsplit("\n", 2)[0], int(done.stdout.rsplit("\n", 2)[1])
        texts.append(text)
        modules.append(count)
    assert texts[0] == texts[1] and texts[0].startswith("If the")
    assert modules[0] < 0.75 * modules[1]


_RUN = """
import sys
from aibit_format.cli import main
assert main(["run", sys.argv[1], "If the", "-n", "12"]) == 0
print("\\n" + str(len(sys.modules)))
"""


def test_bench_measures_what_there_is_to_wait_for(model, capsys):
    """Markdown, JSON and CSV say the same; prompts and tokens are those that were asked for."""
    asked = ("bench", model / "m.aibit", "-p", "12", "-n", "3", "-b", "2", "-r", "2", "--weight-only")
    status, out, err = run(*asked, capsys=capsys)
    assert (status, err) == (0, "")
    tests = ["open", "verify", "load", "pp12", "tg3"]
    lines = out.splitlines()
    assert "most in int8" in lines[0] and "batch 2, weight only" in lines[1]
    assert [line.split(" | ")[0].strip("| ") for line in lines[5:]] == tests
    status, out, _ = run(*asked, "--json", capsys=capsys)
    found = json.loads(out)
    with aibit.open(model / "m.aibit") as file:
        stored = [file.info(name) for name in file if file.info(name).alias_of is None]
    assert found["bytes"] == os.path.getsize(model / "m.aibit") and found["scheme"] == "int8" and found["weight_only"]
    assert found["parameters"] == sum(int(np.prod(info.shape)) for info in stored)
    assert [test["test"] for test in found["tests"]] == tests
    assert all(len(test["samples"]) == 2 and min(test["samples"]) > 0 for test in found["tests"])
    status, out, _ = run(*asked, "-o", "csv", capsys=capsys)
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["test"] for row in rows] == tests and float(rows[0]["least"]) <= float(rows[0]["median"])


def test_bench_says_so_where_nothing_continues_a_prompt(tmp_path, capsys):
    architectures.save("bert", tmp_path / "hf", torch.float16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    status, out, err = run("bench", tmp_path / "m.aibit", "-r", "1", capsys=capsys)
    assert status == 1 and out == "" and "BertModel does not continue a prompt" in err
