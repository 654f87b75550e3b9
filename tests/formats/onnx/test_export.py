"""ONNX: onnxruntime computes what the model does, over weights beside the graph or in the file itself."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

import aibit_format as aibit
from aibit_format.errors import GraphError, MissingPackageError, WriteError
from aibit_format.file import rewrite, writer
from aibit_format.graph.program import DOCUMENT
from tests.support import encoders
from tests.support.graphs import IDS, converted, recorded
from tests.support.onnx_graphs import Session, close, expected

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FAMILIES = ["llama", "gemma2", "gemma3_text", "phi3", "opt"]  # which differ in all that has a node of its own
OTHERS = ["gemma", "mistral", "qwen2", "qwen3", "granite", "olmo2"]


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_a_prompt_and_tokens_after_it(family, tmp_path):
    path = recorded(family, tmp_path)
    made = aibit.export(path, "onnx", tmp_path / "m.onnx", accuracy=0)
    assert made == [str(tmp_path / "m.onnx"), str(tmp_path / "m.onnx.data")]
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    wanted, model = expected(path)
    session = Session(tmp_path / "m.onnx")
    found = [session(IDS.numpy()[:, :7])] + [session(IDS.numpy()[:, i : i + 1]) for i in range(7, IDS.shape[1])]
    assert close(np.concatenate(found, 1), wanted)
    session, ids = Session(tmp_path / "m.onnx"), IDS.numpy()
    last, text = session(ids), []
    for _ in range(8):
        text.append(int(last[0, -1].argmax()))
        last = session(np.array([[text[-1]]]))
    model.generation_config.eos_token_id = None
    again = model.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, IDS.shape[1] :].tolist()
    assert text == again


PACKED = ["int8", "int8-zp,group=32", "int4-group,group=32,symmetric=1"]


@pytest.mark.parametrize(("scheme", "decoded"), [*((each, True) for each in PACKED), *((each, False) for each in [
    "bf16", "int8", "int8-absmax", "int8-absmax,group=32", "int8-zp", "int8-zp,group=32", "int8-zp,group=tensor",
    "int4-group,group=16", "int4-group,group=32,symmetric=1", "int4-group,group=row", "nf4", "gguf:q8_0", "f8_e4m3",
    "int8-outlier",
])])  # fmt: skip
def test_schemes(scheme, decoded, tmp_path):
    path = recorded("llama", tmp_path, scheme)
    aibit.export(path, "onnx", tmp_path / "m.onnx", decoded=decoded, accuracy=0)
    operators = {node.op_type for node in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.node}
    packed = scheme.startswith(("int8", "int4-group")) and "tensor" not in scheme and scheme != "int8-outlier"
    packed = packed and scheme != "int4-group,group=row"
    assert ("MatMulNBits" in operators) is (packed and not decoded)
    assert close(Session(tmp_path / "m.onnx")(IDS.numpy()), expected(path)[0])


@pytest.mark.parametrize("name", encoders.NAMES)
def test_encoders(name, tmp_path):
    path = encoders.recorded(name, tmp_path)
    aibit.export(path, "onnx", tmp_path / "m.onnx", accuracy=0)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]
    assert names == (["input_ids", "position_ids"], ["last_hidden_state"])
    ids = encoders.IDS.numpy()
    (found,) = session.run(None, {"input_ids": ids, "position_ids": np.arange(ids.shape[1])[None]})
    with torch.no_grad():
        assert close(found, aibit.load_model(path, weight_only=True)(encoders.IDS).last_hidden_state.numpy())


def test_it_is_small_where_codes_stay(tmp_path):
    path = recorded("llama", tmp_path, "int8")
    for name, options in (("a", {}), ("b", {"decoded": True})):
        aibit.export(path, "onnx", tmp_path / f"{name}.onnx", **options)
    assert os.path.getsize(tmp_path / "a.onnx.data") < os.path.getsize(tmp_path / "b.onnx.data") / 2


@pytest.mark.parametrize("scheme", ["int8", "bf16", "int4-group,group=32"])
def test_weights_stay_in_the_file(scheme, tmp_path):
    path = recorded("llama", tmp_path, scheme)
    made = aibit.export(path, "onnx", tmp_path / "m.onnx", in_place=True, accuracy=0)
    graph = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph
    inside = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer}
    within = {name: entries for name, entries in inside.items() if entries.get("location") == path.name}
    assert within and (len(made) == 1) == (not scheme.startswith("int4"))
    with aibit.open(path) as file:
        data = path.read_bytes()
        for name, entries in within.items():
            plane = file.planes(name.removesuffix(".signed"))
            offset, length = int(entries["offset"]), int(entries["length"])
            values = plane["codes"] if name.endswith(".signed") else plane["values"]
            assert data[offset : offset + length] == values.tobytes()
    assert close(Session(tmp_path / "m.onnx")(IDS.numpy()), expected(path)[0])
    (tmp_path / "moved").mkdir()
    shutil.move(path, tmp_path / "moved" / "g.aibit")
    with pytest.raises(Exception, match=r"g\.aibit"):
        Session(tmp_path / "m.onnx")


def test_shards_stay_in_place_too(tmp_path):
    path = recorded("llama", tmp_path, "int8")
    (tmp_path / "model").mkdir()
    shards = aibit.split(path, tmp_path / "model" / "s.aibit", "100kB")
    aibit.export(min(shards), "onnx", tmp_path / "m.onnx", in_place=True)
    assert close(Session(tmp_path / "m.onnx")(IDS.numpy()), expected(path)[0])


def test_inputs_in_8_bits_are_close(tmp_path):
    path = recorded("llama", tmp_path)
    aibit.export(path, "onnx", tmp_path / "m.onnx")
    assert close(Session(tmp_path / "m.onnx")(IDS.numpy()), expected(path)[0], 0.05)


def test_zero_points_beyond_four_bits_are_decoded(tmp_path):
    path = recorded("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    with aibit.open(path) as file:
        tensors = {}
        for each in file:
            info = file.info(each)
            planes = {} if info.alias_of else {role: plane.copy() for role, plane in file.planes(each).items()}
            if each == name:
                planes["zero_point"][0, 0] = 16
            tensors[writer.Tensor(info.name, info.shape, info.dtype, info.scheme, info.alias_of)] = planes
        documents = {key: bytes(value) for key, value in file.documents.items()}
        metadata = {key: file.metadata[key] for key in ("model.architecture", "model.type", "model.dtype")}
        writer.write(tmp_path / "z.aibit", tensors, metadata, documents)
    aibit.export(tmp_path / "z.aibit", "onnx", tmp_path / "m.onnx", accuracy=0)
    names = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer}
    assert name in names and f"{name}.codes" not in names
    assert close(Session(tmp_path / "m.onnx")(IDS.numpy()), expected(tmp_path / "z.aibit")[0])


def test_what_cannot_be(tmp_path, monkeypatch):
    path = converted("llama", tmp_path)
    with pytest.raises(WriteError, match=r"holds no graph; write a copy that does: aibit graph"):
        aibit.export(path, "onnx", tmp_path / "m.onnx")
    aibit.add_graph(path, tmp_path / "g.aibit")
    (tmp_path / "other").mkdir()
    for options, message in (
        ({"in_place": True, "decoded": True}, "not both"), ({"accuracy": 5}, "accuracy 5: 0 to 4"),
    ):  # fmt: skip
        with pytest.raises(WriteError, match=message):
            aibit.export(tmp_path / "g.aibit", "onnx", tmp_path / "m.onnx", **options)
    with pytest.raises(WriteError, match=r"is neither in .* nor below it.*beside the file"):
        aibit.export(tmp_path / "g.aibit", "onnx", tmp_path / "other" / "m.onnx", in_place=True)
    aibit.export(tmp_path / "g.aibit", "onnx", tmp_path / "m.onnx")
    with pytest.raises(WriteError, match="exists"):
        aibit.export(tmp_path / "g.aibit", "onnx", tmp_path / "m.onnx")
    aibit.export(tmp_path / "g.aibit", "onnx", tmp_path / "m.onnx", overwrite=True)
    rewrite.edit(tmp_path / "g.aibit", tmp_path / "bad.aibit", documents={DOCUMENT: b"{}"})
    with pytest.raises(GraphError):
        aibit.export(tmp_path / "bad.aibit", "onnx", tmp_path / "n.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'aibit-format\[onnx\]'"):
        aibit.export(tmp_path / "g.aibit", "onnx", tmp_path / "n.onnx")
    assert sorted(os.listdir(tmp_path)) == [
        "bad.aibit", "g.aibit", "hf", "m.aibit", "m.onnx", "m.onnx.data", "other"
    ]  # fmt: skip
