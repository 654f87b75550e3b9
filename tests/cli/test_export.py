"""The command ``aibit export``."""

import json

import numpy as np
import pytest

from aibit_format.cli import main
from tests.support.exported_models import small


@pytest.mark.parametrize(
    "options", [["--to", "onnx"], ["--to", "safetensors", "--type", "f16"], ["--to", "safetensors", "--dequantize"],
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
