"""Ways in beside a directory of safetensors: bitsandbytes' own, torch.save, the old ZIP, an .aibit, a live model."""

from __future__ import annotations

import json
import pathlib
import shutil
import struct
import tracemalloc
import warnings

import pytest
import torch
from safetensors.torch import load_file

from aibit_format.convert.convert import convert
from aibit_format.formats.sources import open_source
from aibit_format.formats.torch_save import pickled
from tests.support.saved_models import Evil, Q, refused, same_files, with_config
from tests.support.saved_models import folder as folder
from tests.support.saved_models import saved as saved

# torch.save


@pytest.fixture
def weights(saved) -> dict[str, torch.Tensor]:
    return load_file(saved / "llama-tied" / "model.safetensors")


def test_pickled_weights_convert_as_safetensors_do(saved, weights, folder, tmp_path):
    with_config(saved, folder)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # one storage, as a tied model saves it
    weights[f"{Q}.weight"] = weights[f"{Q}.weight"].T.contiguous().T  # strides that are not row-major
    padded = torch.zeros(3 + weights["model.norm.weight"].numel())
    padded[3:] = weights["model.norm.weight"]
    weights["model.norm.weight"] = torch.nn.Parameter(padded[3:])  # an offset into its storage
    torch.save(weights, folder / "pytorch_model.bin")
    convert(saved / "llama-tied", tmp_path / "a.aibit")
    convert(folder, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    source = open_source(folder)
    assert source.files[0].name == "pytorch_model.bin" and source.kind == "huggingface"
    view = source.planes("model.embed_tokens.weight")["values"]
    assert not view.flags.owndata and not view.flags.writeable  # the mapped file itself


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sign_of_tensors_that_torch_negates_is_kept(dtype, zipped, saved, weights, folder, tmp_path):
    """torch saves the values as they are and a bit beside them."""
    with_config(saved, folder)
    weights = {name: value.to(dtype) for name, value in weights.items()}
    odd = {name: torch._neg_view(-value) if "proj" in name else value for name, value in weights.items()}
    assert torch.equal(odd[f"{Q}.weight"], weights[f"{Q}.weight"]) and odd[f"{Q}.weight"].is_neg()
    torch.save(weights, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "a.aibit")
    torch.save(odd, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    convert(folder, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def test_torch_files_from_before_zip_convert_too(saved, weights, folder, tmp_path):
    with_config(saved, folder)
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(saved / "llama-tied", tmp_path / "a.aibit")
    convert(folder, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def sharded(saved, weights, folder) -> dict:
    with_config(saved, folder)
    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, members in parts.items():
        torch.save({name: weights[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return index


def test_pickled_shards(saved, weights, folder, tmp_path):
    sharded(saved, weights, folder)
    convert(folder, tmp_path / "a.aibit")
    convert(saved / "llama-tied", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def test_pickled_shards_that_do_not_fit_are_refused(saved, weights, folder):
    index = sharded(saved, weights, folder)
    second = folder / "pytorch_model-00002-of-00002.bin"
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    refused(folder, folder.parent, f"{second.name}: not a torch file, or truncated")
    second.unlink()
    refused(folder, folder.parent, f"'{second.name}' of pytorch_model.bin.index.json is missing")
    torch.save(weights, second)
    refused(folder, folder.parent, "is in pytorch_model-00001-of-00002.bin and in pytorch_model-00002-of-00002.bin")
    second.write_bytes(whole)
    index["weight_map"]["ghost"] = second.name
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "ghost" not in open_source(folder).tensors  # which nobody needs


def test_safetensors_come_first(saved, folder):
    shutil.copytree(saved / "llama-tied", folder, dirs_exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert [file.name for file in open_source(folder).files] == ["model.safetensors"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_not_run(zipped, saved, folder, tmp_path):
    with_config(saved, folder)
    trace = tmp_path / "trace"
    torch.save({"a": Evil(trace)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals([pathlib.PosixPath]):
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # it would
    trace.unlink()
    refused(folder, folder.parent, r"pytorch_model.bin: refused by torch.load\(weights_only=True\): .*nsupported")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(2)], "holds a list"),
        ({"state_dict": {"a": torch.ones(2)}}, "'state_dict': a dict, not a tensor"),
        ({"a": 5}, "'a': a int"),
        ({3: torch.ones(2)}, "tensor 3: "),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a': layout torch.sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a': dtype torch.complex64"),
        ({"a": torch.ones(2, device="meta")}, "'a': is on the meta device"),
        ({"a": torch.ones(1).expand(1000)}, r"'a': f32\[1000\] in 4 bytes"),
        ({"a": torch.ones(4).as_strided((2, 2), (1, 1))}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_flat_state_dicts_of_plain_tensors_are_read(value, message, saved, folder):
    with_config(saved, folder)
    torch.save(value, folder / "pytorch_model.bin")
    if message is None:  # strides may overlap, as long as they stay inside
        assert pickled.PickledFile(str(folder / "pytorch_model.bin")).read("a").tolist() == [[1, 1], [1, 1]]
    else:
        refused(folder, folder.parent, f"pytorch_model.bin: .*{message}")


def test_a_lone_element_may_have_any_stride(saved, folder):
    for zipped in (True, False):
        torch.save({"a": torch.arange(9.0)[::5][1:]}, folder / "m.bin", _use_new_zipfile_serialization=zipped)
        assert pickled.PickledFile(str(folder / "m.bin")).read("a").tolist() == [5]


def test_quantized_torch_tensors_are_refused(saved, folder):
    with_config(saved, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for zipped in (True, False):
        torch.save({"a": value}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        refused(folder, folder.parent, "pytorch_model.bin: ")


class Calls:
    """Pickle as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", [(bytearray, 1 << 31), (torch.FloatTensor, 1 << 29), (torch.Tensor, 1 << 29)])
def test_a_pickle_that_only_allocates_is_refused(call, zipped, saved, folder):
    """torch.load(weights_only=True) calls these."""
    with_config(saved, folder)
    torch.save({"a": Calls(*call)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    tracemalloc.start()
    refused(folder, folder.parent, r"pytorch_model.bin: refused by torch.load.*unsupported global")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 30


def test_an_old_file_that_claims_gigabytes_is_refused_before_they_are_allocated(saved, folder, monkeypatch):
    with_config(saved, folder)
    path = folder / "pytorch_model.bin"
    torch.save({"a": torch.ones(123_457)}, path, _use_new_zipfile_serialization=False)
    size = struct.pack("<i", 123_457)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<i", (1 << 31) - 1)))
    mapped, load = [], pickled.PickledFile._load
    monkeypatch.setattr(
        pickled.PickledFile, "_load", lambda self, without: mapped.append(without) or load(self, without)
    )
    refused(folder, folder.parent, "storages of 8589934588 bytes in a file of")
    assert mapped == [True]  # read once, with storages that have no memory


def test_a_text_that_claims_gigabytes_is_refused(saved, folder):
    with_config(saved, folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02X\xff\xff\xff\x7f" + b"x" * 100)
    tracemalloc.start()
    refused(folder, folder.parent, "pytorch_model.bin: refused by torch.load")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 30
