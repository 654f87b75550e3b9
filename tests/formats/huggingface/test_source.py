"""Checkpoints that are damaged, hostile or incomplete: a clear error that names file and tensor, and no output."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

import aibit_format as aibit
from aibit_format.container import documents
from aibit_format.errors import AibitError, FormatError, LoadError, SourceError
from aibit_format.formats.safetensors.reader import SafetensorsFile
from tests.support import architectures
from tests.support.documents import rebuilt_with


def raw(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few"),
        (b"\1\2\3", "too few"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header of"),
        (raw(b"{nope"), "not valid JSON"),
        (raw(b"[" * 100_000), "not valid JSON"),
        (raw([1]), "not a JSON object"),
        (raw(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
         "used twice"),
        (raw({"a": entry("Q9")}, bytes(8)), "unknown dtype"),
        (raw({"a": entry(shape=(3,))}, bytes(8)), "8 bytes, 12 for"),
        (raw({"a": entry(shape=(-1,), offsets=(0, -4))}, bytes(8)), r"\[-1\] is no list of sizes"),
        (raw({"a": entry(), "__metadata__": {"format": 0}}, bytes(8)), "__metadata__"),
        (raw({"a": entry(), "__metadata__": []}, bytes(8)), "__metadata__"),
        (raw({"a": entry(shape=(2.0,))}, bytes(8)), r"\[2.0\] is no list of sizes"),
        (raw({"a": entry(shape="2")}, bytes(8)), r"\['2'\] is no list of sizes"),
        (raw({"a": entry() | {"shape": ""}}, bytes(8)), "'' is no list of sizes"),
        (raw({"a": entry(offsets=(0, float("inf")))}, bytes(8)), r"\[0, inf\] is no list of sizes"),
        (raw({"a": entry(shape=(0, 1 << 62), offsets=(0, 0))}), "and 1152921504606846975 elements"),
        (raw({"a": entry(shape=[1] * 9, offsets=(0, 4))}, bytes(4)), "at most 8 dimensions"),
        (raw(json.dumps({"a": entry()}).encode("utf-16-le"), bytes(8)), "not valid JSON"),
        (raw({"a": entry(offsets=(0, 8))}, bytes(4)), "truncated"),
        (raw({"a": entry(), "b": entry()}, bytes(8)), "overlap or hole"),
        (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "overlap or hole"),
        (raw({"a": entry()}, bytes(9)), "accounts for"),
        (raw({"a": 5}), "malformed"),
        (raw({"a": {"dtype": "F32"}}), "missing field"),
    ],
)  # fmt: skip
def test_a_damaged_safetensors_file_is_refused(content, message, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        SafetensorsFile(str(path))


def test_a_good_safetensors_file_reads_as_views(tmp_path):
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.int8),
        "scalar": np.float64(3),
    }
    save_file({k: np.asarray(v) for k, v in arrays.items()}, tmp_path / "m.safetensors", {"a": "b"})
    file = SafetensorsFile(str(tmp_path / "m.safetensors"))
    for name, value in arrays.items():
        assert np.array_equal(file.read(name), value) and not file.read(name).flags.writeable
    assert file.metadata == {"a": "b"}


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in several shards."""
    architectures.save("llama-untied", tmp_path / "hf", max_shard_size="100KB")
    return tmp_path / "hf"


def refused(folder, match) -> None:
    with pytest.raises(AibitError, match=match):
        aibit.convert(folder, folder.parent / "m.aibit")
    assert not list(folder.parent.glob("*.aibit")) and not list(folder.parent.glob(".*partial"))


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[1].unlink()
    refused(sharded, "is missing")


def test_a_truncated_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(sharded, f"{shard.name}.*truncated")


def test_an_index_that_names_what_is_not_there_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    refused(sharded, "'ghost.weight'")


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 5}', "{}"])
def test_an_index_that_is_none_is_refused(text, sharded):
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, "not an index")


def test_an_index_with_a_path_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    refused(sharded, "is a path")


def test_a_tensor_in_two_shards_is_refused(sharded):
    shards = sorted(sharded.glob("model-*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shutil.copy(shards[0], sharded / "again.safetensors")
    index["weight_map"]["extra"] = "again.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, "is in .* and in")


def test_pickled_weights_are_not_opened(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(tmp_path / "hf", "pytorch_model.bin: refused by torch.load")


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no-such-model"}, "unknown to the installed transformers"),
        ({"model_type": ["llama"]}, "unknown to the installed transformers"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": ["os.system"]}, "is not one of transformers'"),
        ({"architectures": ["BertModel"]}, "is not one of transformers'"),
        ({"dtype": "load"}, "expected one of float32"),
        ({"hidden_size": "many"}, "refused by LlamaConfig"),
        ({"intermediate_size": 160}, r"wants \["),
        ({"num_hidden_layers": 3}, "lacks: model.layers.2"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    edit_config(tmp_path / "hf", **changes)
    refused(tmp_path / "hf", message)


def test_config_keys_that_run_code_stay_out_of_the_file(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    edit_config(tmp_path / "hf", auto_map={"AutoModel": "evil.Model"}, _attn_implementation_internal="kernels/evil")
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    assert set(report.dropped_keys) >= {"config.json:auto_map", "config.json:_attn_implementation_internal"}
    with aibit.open(tmp_path / "m.aibit") as file:
        config = json.loads(bytes(file.documents["config.json"]))
        assert list(file.metadata["config.dropped_keys"]) == list(report.dropped_keys)
    assert "auto_map" not in config and config["hidden_size"] == 64
    aibit.load_model(tmp_path / "m.aibit")


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"_attn_implementation_internal": "kernels/evil"},
        {"attn_implementation": "kernels/evil"},
        {"experts_implementation": "kernels/evil"},
        {"quantization_config": {"quant_method": "evil"}},
        {"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_file_with_config_keys_that_run_code_is_refused_before_transformers_sees_it(change, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | change
    text = json.dumps(config).encode()
    rebuilt_with(tmp_path / "m.aibit", tmp_path / "evil.aibit", "config.json", text)
    for use in (aibit.load_model, lambda path: aibit.open(path, verify="full")):
        with pytest.raises(FormatError) as caught:
            use(tmp_path / "evil.aibit")
        assert caught.value.code == "AIB-E706"


@pytest.mark.parametrize(
    "text", [b"{", b'{"a": 1, "a": 2}', b"\xff", b"[" * 99_999, b'{"a": NaN}', b"[" * 70 + b"]" * 70]
)
def test_a_document_that_is_not_json_is_refused(text):
    with pytest.raises(FormatError) as caught:
        documents.check("config.json", text)
    assert caught.value.code == "AIB-E705"


def test_unknown_config_keys_never_reach_a_constructor():
    from transformers import LlamaConfig

    from aibit_format.hf.config import allowed, build_config

    given = {
        "model_type": "llama",
        "hidden_size": 64,
        "rope_theta": 5000.0,
        "_private": 1,
        "made_up": "x",
        "use_kernels": 1,
    }
    kept, dropped = allowed(given, LlamaConfig)
    assert set(dropped) == {"_private", "made_up", "use_kernels"} and "hidden_size" in kept
    config = build_config(given)
    assert config.rope_parameters["rope_theta"] == 5000.0 and not hasattr(config, "made_up")


def test_vocabularies_may_hold_any_word():
    tokens = json.dumps({"auto_map": 5}).encode()
    documents.check("vocab.json", tokens)
    assert documents.clean("vocab.json", tokens) == (tokens, [])


def test_a_file_without_a_model_says_so(fixtures):
    with pytest.raises(LoadError, match="no model"):
        aibit.load_model(fixtures / "container" / "dtypes.aibit")
    with pytest.raises(LoadError, match="no tokenizer"):
        aibit.load_tokenizer(fixtures / "container" / "dtypes.aibit")
