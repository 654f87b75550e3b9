"""Ways out: what plain transformers, bitsandbytes and safetensors make of the directories that are written."""

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

from aibit_format.errors import WriteError
from aibit_format.formats.exports import BUILTIN, export, options_of
from tests.support.exported_models import convert, small
from tests.support.exported_models import originals as originals


def test_files_without_a_model(tmp_path):
    file = small(tmp_path / "m.aibit", {"a": np.ones((2, 3), np.float32), "empty": np.ones((0, 4), np.float32)})
    with pytest.raises(WriteError, match="no model"):
        export(file, "huggingface", tmp_path / "out")
    export(file, "safetensors", tmp_path / "out")
    found = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {key: value.shape for key, value in found.items()} == {"a": (2, 3), "empty": (0, 4)}


def test_what_exists_is_refused_or_replaced(tmp_path):
    file = small(tmp_path / "m.aibit", {str(i): np.ones(100, np.float32) for i in range(4)}, {"NOTICE": b"new"})
    out = tmp_path / "out"
    out.mkdir()  # empty: as good as not there
    export(file, "safetensors", out, max_shard_size=400)
    assert len(list(out.glob("*.safetensors"))) == 4
    (out / "mine.txt").write_text("mine")
    (out / "NOTICE").write_text("old")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(WriteError, match="not empty"):
        export(file, "safetensors", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    export(file, "safetensors", out, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["NOTICE", "README.md", "mine.txt", "model.safetensors"]
    assert (out / "NOTICE").read_text() == "new"
    (tmp_path / "a_file").write_text("")
    (tmp_path / "link").symlink_to(out)
    for target in ("a_file", "link"):
        with pytest.raises(WriteError, match="is not a directory"):
            export(file, "safetensors", tmp_path / target, overwrite=True)
    with pytest.raises(WriteError, match="No such file"):
        export(file, "safetensors", tmp_path / "no" / "where")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".aibit")]


def test_nothing_is_written_through_a_link_inside(tmp_path):
    file = small(tmp_path / "m.aibit", {"a": np.ones(2, np.float32)}, {"notes/read.md": b"x"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WriteError, match="is a link"):
        export(file, "safetensors", tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_progress_counts_every_byte(originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "int8")
    seen = []
    export(file, "huggingface", tmp_path / "out", on_progress=lambda *state: seen.append(state))
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert seen[-1][0] == seen[-1][1] == sum(value.nbytes for value in written.values())
    assert [name for *_, name in seen] == file.keys()


def test_a_format_that_nobody_writes(tmp_path):
    with pytest.raises(WriteError, match="unknown format 'keras'; known: huggingface"):
        export(small(tmp_path / "m.aibit", {}), "keras", tmp_path / "out")


def test_options_of_each_format():
    for to in BUILTIN.keys() - {"gguf", "onnx"}:
        assert "max_shard_size" in options_of(to)
    assert options_of("safetensors") == {"dtype", "max_shard_size"}
