"""What works with numpy, construct and xxhash alone, and what everything else says there.

Each test runs the command, or a script, in a process that has no other packages: in an environment with nothing else,
as ``tools/test`` makes one, that is this interpreter; elsewhere one whose packages are links to these three.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys

import pytest

ROOT = next(folder for folder in pathlib.Path(__file__).resolve().parents if (folder / "fixtures").is_dir())
CONTAINER, MODELS = ROOT / "fixtures" / "container", ROOT / "fixtures" / "models"
PACKAGES = ("numpy", "construct", "xxhash")
SECONDS = 60  # within which whatever is asked must answer

_MODEL = """
import numpy as np
from aibit_format.file.writer import Tensor, write
from aibit_format.schemes import make, parse

def planes(scheme, array, dtype):
    return parse(scheme).encode(array, dtype)

rows = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
tensors = {
    Tensor("embed.weight", (64, 128), "f32", make("f32")): planes("f32", rows, "f32"),
    Tensor("a.weight", (64, 128), "f32", make("int8")): planes("int8", rows, "f32"),
    Tensor("b.weight", (64, 128), "f32", parse("nf4"), None, True): planes("nf4", rows, "f32"),
    Tensor("head.weight", (64, 128), "f32", make("f32"), "embed.weight"): {},
}
metadata = {"model.architecture": "LlamaForCausalLM", "model.type": "llama", "model.dtype": "f32"}
write("m.aibit", tensors, metadata, {"config.json": b'{"model_type": "llama"}'})
"""


@pytest.fixture(scope="session")
def core(tmp_path_factory):
    """Interpreter and environment of a process that has the core's packages alone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "AIBIT"))}
    if importlib.util.find_spec("torch") is None:
        return [sys.executable], environment | {"PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("core")
    for package in PACKAGES:
        found = importlib.metadata.distribution(package)
        for part in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (folder / part).symlink_to(pathlib.Path(str(found.locate_file(part))))
    return [sys.executable, "-S"], environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


@pytest.fixture
def run(core, tmp_path):
    """A function that runs ``aibit``, or a script after ``-c``: (status, stdout, stderr)."""

    def start(*arguments):
        command = [] if arguments[0] == "-c" else ["-m", "aibit_format"]
        done = subprocess.run(
            [*core[0], *command, *map(str, arguments)], env=core[1], cwd=tmp_path, capture_output=True, text=True,
            timeout=SECONDS,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return start


@pytest.fixture
def model(run, tmp_path):
    """A model of tensors in several schemes, and a set of shards of it."""
    assert run("-c", _MODEL) == (0, "", "")
    assert run("split", "m.aibit", "-o", "s.aibit", "--max-shard-size", "40kB")[0] == 0
    return tmp_path / "m.aibit"


def ok(found):
    status, out, err = found
    assert (status, err) == (0, ""), err
    return out


def test_nothing_but_the_core_is_there_and_nothing_else_is_loaded(run):
    out = ok(run("-c", f"""
import importlib.util, sys
before = set(sys.modules)
for name in ("torch", "tqdm", "transformers", "safetensors", "cryptography", "gguf"):
    assert importlib.util.find_spec(name) is None, name
import aibit_format
from aibit_format.cli import main
assert main(["inspect", {str(CONTAINER / "hello.aibit")!r}]) == 0
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print("loaded", *sorted(loaded - set(sys.stdlib_module_names)))
"""))  # fmt: skip
    loaded = set(out.splitlines()[-1].split()[1:])
    assert (
        {"aibit_format", "numpy"}
        <= loaded
        <= {"aibit_format", *PACKAGES, "_cython_3_2_4"}
        | {name for name in loaded if name.startswith(("_cython", "_xxhash", "cython_runtime"))}
    )


def test_names_are_there_and_say_what_is_missing(run):
    out = ok(run("-c", """
import aibit_format
from aibit_format import *
assert all(hasattr(aibit_format, name) for name in aibit_format.__all__)
for function in (aibit_format.load, load_model, load_tokenizer):
    try:
        function("m.aibit")
    except aibit_format.AibitError as error:
        print(error.code, error)
"""))  # fmt: skip
    assert out.count("AIB-E905") == 3 and out.count("pip install 'aibit-format[hf]'") == 3


def test_numpy_reads_and_writes(run):
    ok(run("-c", """
import numpy as np
import aibit_format as aibit
from aibit_format.numpy import load_file, safe_open, save_file
save_file({"a": np.arange(6.0).reshape(2, 3)}, "n.aibit", {"format": "pt"})
with safe_open("n.aibit") as file:
    assert file.metadata() == {"format": "pt"} and file.get_slice("a")[1].tolist() == [3, 4, 5]
assert load_file("n.aibit")["a"].sum() == 15
with aibit.open("n.aibit", verify="full") as file:
    assert file.dequantize("a").shape == (2, 3)
"""))  # fmt: skip


@pytest.mark.parametrize("name", [path.name for path in sorted(CONTAINER.glob("*.aibit")) if "-0000" not in path.name])
def test_fixtures_are_read(name, run, tmp_path):
    path = CONTAINER / name
    assert json.loads(ok(run("inspect", path, "--json")))["file"] == str(path)
    assert "valid" in ok(run("verify", path))
    assert "the same" in ok(run("diff", path, path))
    ok(run("extract", path, "-o", tmp_path / "out"))


def test_verbs_that_write(model, run, tmp_path):
    assert "4 tensors" in ok(run("inspect", model)) and "valid" in ok(run("verify", "s-00001-of-00002.aibit"))
    ok(run("merge", "s-00001-of-00002.aibit", "-o", "merged.aibit"))
    assert "the same" in ok(run("diff", "merged.aibit", model))
    ok(run("edit", model, "-o", "e.aibit", "--set", "a.b=1"))
    status, out, err = run("diff", model, "e.aibit")
    assert (status, err) == (1, "") and "metadata a.b" in out
    ok(run("extract", model, "-o", "out", "--tensor", "b.weight"))
    assert (tmp_path / "out" / "b.weight.npy").stat().st_size > 4 * 64 * 128
    ok(run("export", model, "--to", "safetensors", "-o", "st"))
    assert "3 f32" in ok(run("inspect", "st/model.safetensors"))


def test_a_model_is_converted_as_its_file_says(model, run, tmp_path):
    ok(run("convert", model, "-o", "kept.aibit"))
    status, out, _ = run("diff", model, "kept.aibit")
    assert status == 1 and {line.split()[0] for line in out.splitlines()[:-1]} == {"metadata"}
    found = json.loads(ok(run("inspect", "kept.aibit", "--json")))
    assert found["metadata"]["model.architecture"] == "LlamaForCausalLM"
    assert [library.split()[0] for library in found["metadata"]["tool.libraries"]] == ["numpy"]
    rule = ["--tensor", "head=int8-zp,group=32"]
    ok(run("convert", model, "-o", "ruled.aibit", "--scheme", "keep", *rule, "--jobs", "2"))
    tensors = {t["name"]: t for t in json.loads(ok(run("inspect", "ruled.aibit", "--json")))["tensors"]}
    assert tensors["embed.weight"]["scheme"] == "int8-zp,group=32"
    assert tensors["head.weight"]["alias_of"] == "embed.weight" and tensors["b.weight"]["scheme"] == "nf4"
    ok(run("convert", "s-00001-of-00002.aibit", "-o", "again.aibit", "--max-shard-size", "1GB"))
    assert "valid" in ok(run("verify", "again-00001-of-00001.aibit"))
    assert "b.weight" in ok(run("convert", model, "--dry-run"))


@pytest.mark.parametrize("options", [["--scheme", "int8"], ["--architecture", "LlamaForCausalLM"]])
def test_what_only_transformers_knows_is_said_to_be_missing(options, model, run, tmp_path):
    status, out, err = run("convert", model, "-o", "c.aibit", *options)
    assert (status, out) == (1, "") and "--scheme keep" in err and "pip install 'aibit-format[hf]'" in err
    assert "[AIB-E905]" in err and not (tmp_path / "c.aibit").exists()


def test_tensors_without_a_model_are_converted(run, tmp_path):
    status, _, err = run("convert", CONTAINER / "hello.aibit", "-o", "c.aibit")
    assert status == 0 and "tensors alone" in err, err
    (tmp_path / "m.gguf").write_bytes(gguf("unheard-of"))
    ok(run("inspect", "m.gguf"))
    status, _, err = run("convert", "m.gguf", "-o", "g.aibit")
    assert status == 0 and "tensors alone" in err and "q8_0" in ok(run("inspect", "g.aibit"))


def test_values_are_rounded(model, run):
    ok(run("convert", model, "-o", "c.aibit", "--tensor", "embed=bf16"))
    assert "bf16" in ok(run("inspect", "c.aibit"))


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["convert", MODELS / "tiny-llama", "-o", "c.aibit"], "hf"),
        (["export", "m.aibit", "--to", "huggingface", "-o", "x"], "hf"),
        (["export", "m.aibit", "--to", "gguf", "-o", "x.gguf"], "gguf"),
        (["run", "m.aibit", "hello"], "hf"),
        (["eval", "m.aibit", "--text", __file__], "hf"),
        (["bench", "m.aibit"], "hf"),
        (["sign", "m.aibit", "--key", "k.pem", "-o", "x.aibit"], "sign"),
        (["sign", "--new-key", "k"], "sign"),
        (["verify", "m.aibit", "--key", "k.pub"], "sign"),
        (["convert", "t.zip", "-o", "c.aibit"], "hf"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(str(part) for part in value[:4]),
)
def test_verbs_that_need_more_say_which_package(arguments, extra, model, run, tmp_path):
    torch_file(tmp_path / "t.zip")
    before = sorted(tmp_path.iterdir())
    status, out, err = run(*arguments)
    assert (status, out) == (1, "") and "Traceback" not in err
    assert f"pip install 'aibit-format[{extra}]'" in err and "[AIB-E905]" in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="terminals are something else there")
@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "m.aibit", "-o", "x.aibit", "--set", "a.b=1"],
        ["split", "m.aibit", "-o", "x.aibit", "--max-shard-size", "40kB"],
        ["merge", "s-00001-of-00002.aibit", "-o", "x.aibit"],
        ["convert", "m.aibit", "-o", "x.aibit"],
        ["export", "m.aibit", "--to", "safetensors", "-o", "x"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_progress_on_a_terminal(arguments, model, core, tmp_path):
    import pty

    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [*core[0], "-m", "aibit_format", *arguments],
        env=core[1], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(terminal, 1 << 16):
            shown += part
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(terminal)
    assert process.wait(SECONDS) == 0, shown
    text = shown.decode()
    assert "100%" in text and "kB of" in text and "\n" not in text
    assert text.endswith("\r") and not text.rpartition("\r")[0].rpartition("\r")[2].strip()  # wiped away at the end


def gguf(architecture):
    """A GGUF file of this architecture with one tensor of q8_0, [2, 32]."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("general.architecture") + struct.pack("<I", 8)
    head += text(architecture) + text("w") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
    return head + bytes(-len(head) % 32) + 2 * (b"\x00\x3c" + bytes(range(32)))


def torch_file(path):
    """A ZIP archive that has a state dict in it."""
    import io
    import zipfile

    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("a/data.pkl", b"")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.pt", inner.getvalue())
        file.writestr("config.json", "{}")
