"""The command ``aibit export``."""

import json

import numpy as np
import pytest

from aibit_format.cli import main
from tests.support.exported_models import convert, small
from tests.support.exported_models import originals as originals


@pytest.mark.parametrize(
    "options", [["--to", "keras"], ["--to", "gguf", "--in-place"], ["--to", "onnx", "--accuracy", "5"],
                ["--to", "safetensors", "--type", "f16"], ["--to", "safetensors", "--dequantize"],
                ["--to", "huggingface", "--dtype", "i8"], ["--to", "safetensors", "--max-shard-size", "5 parsecs"], []]
)  # fmt: skip
def test_usage_errors(options, tmp_path, capsys):
    small(tmp_path / "m.aibit", {})
    with pytest.raises(SystemExit) as error:
        main(["export", str(tmp_path / "m.aibit"), "-o", str(tmp_path / "out"), *options])
    assert error.value.code == 2
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    small(tmp_path / "m.aibit", {str(i): np.ones(1000, np.float32) for i in range(2)})
    command = ["export", str(tmp_path / "m.aibit"), "--to", "safetensors", "-o", str(tmp_path / "out"), "--dtype=f16"]
    assert main([*command, "--max-shard-size", "2kB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "safetensors"
    assert {entry["path"]: entry["bytes"] for entry in found["files"]} == {
        str(p): p.stat().st_size for p in (tmp_path / "out").iterdir()
    }
    assert len(found["files"]) == 4
    assert main(command) == 1
    assert "not empty" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert "model.safetensors  4" in capsys.readouterr().out
    (tmp_path / "bad.aibit").write_bytes(b"nothing")
    assert main(["export", str(tmp_path / "bad.aibit"), "--to", "safetensors", "-o", str(tmp_path / "x")]) == 3


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [("int8", [], "quantized as bitsandbytes"), ("f16", [], "not quantized"), ("ternary", [], "quantized as bitnet"),
     ("int4-group", [], "quantized as compressed-tensors (pack-quantized)"),
     ("int4-group", ["--type", "gptq"], "quantized as gptq (gptq)")],
)  # fmt: skip
def test_the_form_of_a_directory_is_said_in_words(scheme, options, words, originals, tmp_path, capsys):
    convert(originals("untied"), tmp_path / "m.aibit", scheme).close()
    command = ["export", str(tmp_path / "m.aibit"), "--to", "huggingface", "-o", str(tmp_path / "out"), *options]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == words
    assert main([*command, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["form"] == words
