"""Ways out: what plain transformers, bitsandbytes and safetensors make of the directories that are written."""

import json
import re
from types import SimpleNamespace

import bitsandbytes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers as tf
from transformers.quantizers.quantizers_utils import should_convert_module

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.container import documents
from aibit_format.dtypes import DTYPES
from aibit_format.errors import SchemeError, WriteError
from aibit_format.file import writer
from aibit_format.formats.exports import BUILTIN, export, options_of
from aibit_format.formats.huggingface.export import _skipped
from aibit_format.formats.safetensors.writer import Entry, SafetensorsFile
from aibit_format.interop import to_torch
from aibit_format.schemes import make
from tests.support import architectures

# Rows of whole blocks of 64: for others bitsandbytes' CPU kernels give wrong numbers (spec/schemes/fourbit.md).
LLAMA = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "tied": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "untied": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**LLAMA, tie_word_embeddings=False)),
    "gpt2": architectures.MODELS["gpt2"],
    "t5": architectures.MODELS["t5"],
}
# Scheme here -> the same in transformers' words.
KINDS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4,nested=1": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
}


def save(name, folder, dtype=torch.float32):
    family, config = MODELS[name]
    torch.manual_seed(0)
    model = family(config())
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim >= 2 and name != "t5":
                value.mul_(3)
    model.to(dtype).save_pretrained(folder)
    return folder


def convert(folder, path, scheme, tensors=()):
    aibit.convert(folder, path, scheme, tensors)
    return aibit.open(path)


def load(name, folder, **arguments):
    return MODELS[name][0].from_pretrained(folder, device_map={"": "cpu"}, **arguments).eval()


def logits(model, name):
    return architectures.output(model, "t5" if name == "t5" else "llama-tied")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Folders of the models, float16, made when asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp(name), torch.float16)
        return made[name]

    return folder


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_the_directory_as_if_it_had_quantized_the_model(name, scheme, originals, tmp_path):
    with convert(originals(name), tmp_path / "m.aibit", scheme) as file:
        export(file, "huggingface", tmp_path / "out", dtype="f32")
    reference = load(name, originals(name), quantization_config=tf.BitsAndBytesConfig(**KINDS[scheme]))
    reference.save_pretrained(tmp_path / "theirs")
    # The very file that transformers writes. (With more scales nested_offset may differ in the last bit: see fourbit.)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "theirs" / "model.safetensors"
    ).read_bytes()
    ours, theirs = config_of(tmp_path / "out"), config_of(tmp_path / "theirs")
    skipped = ours["quantization_config"].pop("llm_int8_skip_modules")
    assert theirs["quantization_config"].pop("llm_int8_skip_modules") is None
    assert ours == theirs and list(ours) == list(theirs)
    model = load(name, tmp_path / "out")
    linear = [n for n, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert sorted(skipped) == sorted(linear)
    assert [(n, type(m).__name__) for n, m in model.named_modules()] == [
        (n, type(m).__name__) for n, m in reference.named_modules()
    ]
    expected = logits(reference, name)
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(logits(model, name), expected)


def test_four_bit_layers_compute_in_the_models_dtype_unless_told(originals, tmp_path):
    with convert(originals("untied"), tmp_path / "m.aibit", "nf4") as file:
        export(file, "huggingface", tmp_path / "a")
        export(file, "huggingface", tmp_path / "b", dtype="bf16")
    found = [config_of(tmp_path / x)["quantization_config"]["bnb_4bit_compute_dtype"] for x in "ab"]
    assert found == ["float16", "bfloat16"]


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("name", ["tied", "gpt2"])
def test_a_quantized_directory_comes_back_as_it_was(name, scheme, originals, tmp_path):
    pytest.importorskip("aibit_format.formats.huggingface.bitsandbytes")
    reference = load(name, originals(name), quantization_config=tf.BitsAndBytesConfig(**KINDS[scheme]))
    reference.save_pretrained(tmp_path / "in")
    with convert(tmp_path / "in", tmp_path / "m.aibit", None) as file:
        export(file, "huggingface", tmp_path / "out")
    before, after = (safetensors.torch.load_file(tmp_path / x / "model.safetensors") for x in ("in", "out"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key


def test_nf4_cpu_is_exported_as_nf4(originals, tmp_path):
    with convert(originals("untied"), tmp_path / "a.aibit", "nf4") as file:
        export(file, "huggingface", tmp_path / "a")
    with convert(originals("untied"), tmp_path / "b.aibit", "nf4-cpu") as file:
        export(file, "huggingface", tmp_path / "b")
    a, b = ((tmp_path / x / "model.safetensors").read_bytes() for x in "ab")
    assert a == b


REFUSED = {
    # A quantized embedding that the head is tied to; a Linear that T5 keeps in float32; a kind in the minority.
    "tied": ("int8", {"embed_tokens": "int8"}, "model.embed_tokens.weight"),
    "t5": ("int8", {r"encoder\.block\.0.*wo": "int8"}, "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
    "untied": ("nf4", {r"layers\.1.*up_proj": "int8"}, "model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_without_a_layer_are_named_or_dequantized(name, originals, tmp_path):
    scheme, rules, tensor = REFUSED[name]
    file = convert(originals(name), tmp_path / "m.aibit", scheme, rules)
    with pytest.raises(WriteError, match=re.escape(repr(tensor))) as error:
        export(file, "huggingface", tmp_path / "out")
    assert "--to safetensors" in str(error.value) and "--dequantize" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.aibit"]
    export(file, "huggingface", tmp_path / "out", dequantize=True, dtype="f32")
    model = load(name, tmp_path / "out")
    assert any("bit" in type(module).__name__ for module in model.modules())
    rounded = np.float32 if name == "t5" else np.float16
    assert np.array_equal(model.get_parameter(tensor).detach().float(), rounded(file.dequantize(tensor)))
    assert torch.isfinite(logits(model, name)).all()


def test_a_head_that_is_quantized_stays_quantized(originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "int8", {"lm_head": "int8"})
    export(file, "huggingface", tmp_path / "out")
    assert config_of(tmp_path / "out")["quantization_config"]["llm_int8_skip_modules"] == []
    model = load("untied", tmp_path / "out")
    assert type(model.lm_head).__name__ == "Linear8bitLt"
    assert torch.equal(logits(model, "untied"), logits(aibit.load_model(file), "untied"))


def test_four_bit_schemes_may_be_mixed(originals, tmp_path):
    """Every layer has a state of its own: the kind of code, the block size, nested or not."""
    rules = {r"layers\.1.*_proj": "fp4", r"up_proj": "nf4,block_size=128,nested=1", "q_proj": "bf16"}
    file = convert(originals("untied"), tmp_path / "m.aibit", "nf4", rules)
    export(file, "huggingface", tmp_path / "out", dtype="f32")
    model = load("untied", tmp_path / "out")
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    kinds = set()
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            kinds.add((state.quant_type, state.blocksize, state.nested))
            # Blocks of 128 do not fit rows of 64, so bitsandbytes' own CPU decoding is of no use here.
            values = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset \
                if state.nested else state.absmax  # fmt: skip
            codes = module.weight.data.reshape(-1)
            codes = torch.stack([codes >> 4, codes & 15], 1).reshape(-1, state.blocksize).long()
            found = (state.code[codes] * values[:, None]).reshape(state.shape)
            assert np.array_equal(found, file.dequantize(f"{name}.weight")), name
    assert kinds == {("nf4", 64, False), ("fp4", 64, False), ("nf4", 128, True)}


def test_a_skipped_name_does_not_take_others_with_it(originals, tmp_path):
    """To transformers a plain name also means every module whose name ends with it."""
    inner = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2)})
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2), "a": inner})
    found = _skipped(SimpleNamespace(module=model), [SimpleNamespace(name="a.head.weight")])
    assert found == ["^head$"]
    assert should_convert_module("a.head", found) and not should_convert_module("head", found)


@pytest.mark.parametrize("name", ["tied", "gpt2", "t5"])
def test_dequantized_directories_load_like_any_other(name, originals, tmp_path):
    file = convert(originals(name), tmp_path / "m.aibit", "nf4")
    paths = export(file, "safetensors", tmp_path / "out")
    assert sorted(paths) == sorted(str(p) for p in (tmp_path / "out").iterdir())
    model = load(name, tmp_path / "out")
    quantized = 0
    for key, value in model.state_dict().items():
        info = file.info(key)
        wanted = file.dequantize(key).T if info.transposed else file.dequantize(key)
        assert np.array_equal(value.float(), np.float16(wanted) if info.dtype == "f16" else wanted), key
        quantized += info.scheme.name == "nf4"
    assert quantized
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    original = safetensors.torch.load_file(originals(name) / "model.safetensors")
    assert written.keys() == original.keys()  # ties left out alike


@pytest.mark.parametrize(("dtype", "name"), [("f32", "float32"), ("bf16", "bfloat16")])
def test_another_dtype_is_that_of_every_tensor_and_of_the_config(dtype, name, originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "int8")
    export(file, "safetensors", tmp_path / "out", dtype=dtype)
    assert config_of(tmp_path / "out")["dtype"] == name
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {getattr(torch, name)}
    for key, value in written.items():
        assert torch.equal(value, torch.from_numpy(file.dequantize(key)).to(value.dtype)), key
    assert next(load("untied", tmp_path / "out").parameters()).dtype == getattr(torch, name)


def small(path, tensors, documents=None, metadata=None):
    """A file of float32 arrays, or of (array, scheme)."""
    planned = {}
    for name, value in tensors.items():
        array, scheme = value if isinstance(value, tuple) else (value, make("f32"))
        planned[writer.Tensor(name, array.shape, "f32", scheme)] = scheme.encode(array, "f32")
    writer.write(path, planned, metadata, documents)
    return aibit.open(path)


def test_values_too_large_are_refused_by_name_and_nothing_is_left(tmp_path):
    file = small(tmp_path / "m.aibit", {"fine": np.ones(3, np.float32), "large": np.float32([1, 70000])})
    with pytest.raises(SchemeError, match=r"'large'.*too large for f16: largest magnitude 70000"):
        export(file, "safetensors", tmp_path / "out", dtype="f16")
    assert [p.name for p in tmp_path.iterdir()] == ["m.aibit"]
    with pytest.raises(ValueError, match="f8_e4m3"):
        export(file, "safetensors", tmp_path / "out", dtype="f8_e4m3")


def test_files_without_a_model(tmp_path):
    file = small(tmp_path / "m.aibit", {"a": np.ones((2, 3), np.float32), "empty": np.ones((0, 4), np.float32)})
    with pytest.raises(WriteError, match="no model"):
        export(file, "huggingface", tmp_path / "out")
    export(file, "safetensors", tmp_path / "out")
    found = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {key: value.shape for key, value in found.items()} == {"a": (2, 3), "empty": (0, 4)}


@pytest.mark.parametrize(("tie", "names"), [(False, {"a", "b"}), (True, {"a"}), (None, {"a"})])
def test_an_alias_is_left_to_the_config_unless_that_unties_it(tie, names, tmp_path):
    config = {} if tie is None else {"tie_word_embeddings": tie}
    tensors = {
        writer.Tensor("a", (2, 3), "f32", make("int8")): make("int8").encode(np.eye(2, 3, dtype=np.float32), "f32"),
        writer.Tensor("b", (2, 3), "f32", make("int8"), alias_of="a"): {},
    }
    writer.write(tmp_path / "m.aibit", tensors, None, {"config.json": json.dumps(config).encode()})
    export(aibit.open(tmp_path / "m.aibit"), "safetensors", tmp_path / "out")
    assert safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors").keys() == names


@pytest.mark.parametrize("to", ["huggingface", "safetensors"])
def test_shards(to, originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "nf4")
    export(file, to, tmp_path / "one")
    export(file, to, tmp_path / "many", max_shard_size=30_000)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 3 and not (tmp_path / "many" / "model.safetensors").exists()
    assert shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    parts = {path.name: safetensors.torch.load_file(path) for path in shards}
    assert {key: name for name, part in parts.items() for key in part} == index["weight_map"]
    sizes = [sum(value.nbytes for value in part.values()) for part in parts.values()]
    assert sum(sizes) == index["metadata"]["total_size"] and max(sizes) <= 30_000
    one, many = load("untied", tmp_path / "one"), load("untied", tmp_path / "many")
    assert torch.equal(logits(one, "untied"), logits(many, "untied"))


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"b": 'é"\\', "a": ""}])
def test_safetensors_files_are_those_of_the_reference(metadata, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        for shape in ((), (3, 5), (0, 2), (2,)):
            raw = rng.integers(0, 2, (*shape, dtype.numpy.itemsize), np.uint8)
            arrays[f"{(i * 7) % 16}.{name}.{len(shape)}.{shape[:1]}"] = (name, raw.view(dtype.numpy).reshape(shape))
    entries = [Entry(key, dtype, value.shape) for key, (dtype, value) in arrays.items()]
    with SafetensorsFile(str(tmp_path / "ours"), entries, metadata) as out:
        for key in reversed(arrays):
            out.write(key, arrays[key][1])
    theirs = {key: to_torch(value, dtype) for key, (dtype, value) in arrays.items()}
    wanted = safetensors.torch.save(theirs, metadata)
    ours = (tmp_path / "ours").read_bytes()
    if len(metadata) == 1:  # the reference writes several in no particular order
        assert ours == wanted
    assert len(ours) == len(wanted)
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == metadata
        assert {key: tuple(file.get_tensor(key).shape) for key in file.keys()} == {  # noqa: SIM118
            key: value.shape for key, (_, value) in arrays.items()
        }


def test_safetensors_files_are_written_whole_or_refused(tmp_path):
    entry = Entry("a", "f32", (2,))
    with pytest.raises(WriteError, match="1 tensors were not written: 'a'"), \
            SafetensorsFile(str(tmp_path / "x"), [entry], {}):  # fmt: skip
        pass
    with pytest.raises(WriteError, match=r"'a': float64\[2\], planned f32\[2\]"), \
            SafetensorsFile(str(tmp_path / "y"), [entry], {}) as out:  # fmt: skip
        out.write("a", np.zeros(2))
    with pytest.raises(WriteError, match="2 tensors under 1 names"):
        SafetensorsFile(str(tmp_path / "z"), [entry, entry], {})


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


def test_documents_are_written_as_they_are_with_a_card_if_there_is_none(tmp_path):
    documents = {"config.json": b'{ "model_type":"x" }', "additional_chat_templates/a.jinja": b"{{ a }}"}
    metadata = {"model.architecture": "X`\n# Y", "quantization.recipe": ["*=int8", "a=b"]}
    file = small(tmp_path / "m.aibit", {"a": np.ones(2, np.float32)}, documents, metadata)
    paths = export(file, "safetensors", tmp_path / "a")
    assert str(tmp_path / "a" / "additional_chat_templates" / "a.jinja") in paths
    for name, text in documents.items():
        assert (tmp_path / "a" / name).read_bytes() == text
    card = (tmp_path / "a" / "README.md").read_text()
    assert "- Architecture: `X# Y`\n" in card and "`*=int8`, `a=b`" in card and file.root in card
    file = small(tmp_path / "n.aibit", {"a": np.ones(2, np.float32)}, {"README.md": b"theirs"})
    export(file, "safetensors", tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_bytes() == b"theirs"


@pytest.mark.parametrize(("text", "error"), [(b"[1]", "no JSON object"), (b'{"runs_code": 1}', "runs_code")])
def test_a_config_that_nobody_should_load_is_not_passed_on(text, error, tmp_path, monkeypatch):
    file = small(tmp_path / "m.aibit", {"a": np.ones(2, np.float32)}, {"config.json": text})
    monkeypatch.setitem(documents.FORBIDDEN_IN, "config.json", frozenset({"runs_code"}))
    for to in ("huggingface", "safetensors"):
        with pytest.raises(aibit.AibitError, match=error):
            export(file, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "MODEL.safetensors", "model.safetensors.index.json"])
def test_a_document_cannot_take_the_place_of_the_weights(name, tmp_path):
    file = small(tmp_path / "m.aibit", {"a": np.ones(2, np.float32)}, {name: b"{}"})
    with pytest.raises(WriteError, match="name of a file of weights"):
        export(file, "safetensors", tmp_path / "out")


def test_progress_counts_every_byte(originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "int8")
    seen = []
    export(file, "huggingface", tmp_path / "out", on_progress=lambda *state: seen.append(state))
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert seen[-1][0] == seen[-1][1] == sum(value.nbytes for value in written.values())
    assert [name for *_, name in seen] == file.keys()


def test_a_format_that_nobody_writes(tmp_path):
    with pytest.raises(WriteError, match="unknown format 'onnx'; known: huggingface"):
        export(small(tmp_path / "m.aibit", {}), "onnx", tmp_path / "out")


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


def test_options_of_each_format():
    for to in BUILTIN.keys() - {"gguf"}:
        assert "max_shard_size" in options_of(to)
    assert options_of("safetensors") == {"dtype", "max_shard_size"}


@pytest.mark.parametrize(
    "options",
    [{"load_in_8bit": True, "llm_int8_threshold": 2.5},
     {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}],
    ids=["threshold", "compute dtype"],
)  # fmt: skip
def test_what_layers_compute_with_comes_through(options, tmp_path):
    """From a saved directory, through a file, into a model here, and into a directory again."""
    family, _ = architectures.MODELS["llama-untied"]
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    config = tf.BitsAndBytesConfig(**options)
    saved = family.from_pretrained(tmp_path / "hf", quantization_config=config, device_map="cpu").eval()
    saved.save_pretrained(tmp_path / "saved")
    expected = architectures.output(saved, "llama-untied")
    aibit.convert(tmp_path / "saved", tmp_path / "m.aibit")
    aibit.convert(tmp_path / "m.aibit", tmp_path / "again.aibit")
    with aibit.open(tmp_path / "again.aibit") as file:
        model = aibit.load_model(file)
        export(file, "huggingface", str(tmp_path / "out"))
    assert torch.equal(architectures.output(model, "llama-untied"), expected)
    again = family.from_pretrained(tmp_path / "out", device_map="cpu").eval()
    assert torch.equal(architectures.output(again, "llama-untied"), expected)
    layer = next(m for m in model.modules() if hasattr(m, "state") or hasattr(m, "compute_dtype"))
    assert layer.state.threshold == 2.5 if "load_in_8bit" in options else layer.compute_dtype == torch.float32
