"""Models go out as GGUF."""

from __future__ import annotations

import json
import shutil
import sys

import gguf
import numpy as np
import pytest
import transformers

import aibit_format as aibit
from aibit_format.errors import MissingPackageError, RecipeError, WriteError
from aibit_format.formats.gguf.architectures import ARCHITECTURES
from aibit_format.formats.gguf.export import export
from aibit_format.formats.sources import open_source
from tests.support import architectures
from tests.support import gguf_conversion as conversions
from tests.support.exported_models import small
from tests.support.gguf_conversion import convert, model_of
from tests.support.gguf_models import CONFIGS, SMALL, finish, logits, theirs, written
from tests.support.gguf_models import models as models

transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_goes_out_and_transformers_reads_it(name, models, tmp_path):
    source = models(name)
    original = aibit.load_model(source / "m.aibit")
    file = written(source / "m.aibit", tmp_path / "exact.gguf")
    assert {t.type for t in file.tensors} == {"f32"}
    assert ("output.weight" in {t.name for t in file.tensors}) == (name in ("llama", "llama-bias"))
    if name != "llama-bias":  # transformers' loader reads no attention_bias
        found = theirs(tmp_path / "exact.gguf")
        assert architectures.close(logits(found), logits(original))
    file = written(source / "m.aibit", tmp_path / "q8.gguf", type="q8_0", overwrite=True)
    small = {t.name for t in file.tensors if len(t.shape) == 1 or t.name == "position_embd.weight"}
    assert {t.name for t in file.tensors if t.type == "f32"} == small
    assert {t.type for t in file.tensors if t.name not in small} == {"q8_0"}


def test_what_gguf_has_not_goes_out_as_float16(models, tmp_path):
    source = models("gpt2") / "hf"
    aibit.convert(source, tmp_path / "m.aibit", scheme="int8")
    file = written(tmp_path / "m.aibit", tmp_path / "m.gguf")
    tensor = next(t for t in file.tensors if t.name == "blk.1.ffn_up.weight")
    with aibit.open(tmp_path / "m.aibit") as f:
        values = f.dequantize("transformer.h.1.mlp.c_fc.weight")  # stored transposed, as GGUF has it
    assert tensor.type == "f16" and file.read(tensor).tobytes() == values.astype(np.float16).tobytes()


@pytest.mark.parametrize(
    ("norm", "matrix", "dtype"),
    [(1.0, 0.5, "bfloat16"), (1 + 2**-10, 0.5, "float16"), (1 + 2**-10, 2.0**-30, "float32"), (1.1, 0.5, "float32")],
)
def test_the_smallest_dtype_that_holds_the_rest_exactly(norm, matrix, dtype, models, tmp_path):
    source = models("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(source / "hf")
    for value in model.parameters():
        value.data.fill_(norm if value.ndim == 1 else matrix)
    model.save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="keep")
    written(tmp_path / "m.aibit", tmp_path / "m.gguf")
    assert json.loads(open_source(tmp_path / "m.gguf").documents["config.json"])["dtype"] == dtype


def test_nothing_is_replaced_unasked_and_nothing_left_half_written(models, tmp_path, monkeypatch):
    path = models("llama") / "m.aibit"
    written(path, tmp_path / "m.gguf")
    before = (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(WriteError, match=r"m\.gguf: exists"):
        written(path, tmp_path / "m.gguf")
    with pytest.raises(WriteError, match="Modelfile: exists"):
        written(path, tmp_path / "other.gguf")
    done = []
    written(path, tmp_path / "m.gguf", overwrite=True, on_progress=lambda *values: done.append(values))
    assert (tmp_path / "m.gguf").read_bytes() == before and done[-1][0] == done[-1][1] and len(done) == 21

    def fail(*values):
        raise OSError(28, "no space left")

    with pytest.raises(WriteError, match="no space left"):
        written(path, tmp_path / "m.gguf", type="f16", overwrite=True, on_progress=fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Modelfile", "m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == before
    with pytest.raises(ValueError, match="type='q8_k'"):
        written(path, tmp_path / "m.gguf", type="q8_k")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"aibit-format\[gguf\]"):
        written(path, tmp_path / "n.gguf")


def test_what_llama_cpp_has_no_place_for_is_refused(models, tmp_path):
    source = models("llama") / "hf"
    for change, message in (
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' has no counterpart"),
    ):
        folder = tmp_path / "hf"
        shutil.copytree(source, folder, dirs_exist_ok=True)
        config = json.loads((source / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        aibit.convert(folder, tmp_path / "m.aibit", scheme="keep", overwrite=True)
        with pytest.raises(WriteError, match=message):
            written(tmp_path / "m.aibit", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


ROPE = {"rope_type": "default", "rope_theta": 1e4}
NO_NUMBERS = (None, -1, 0, 0.5, 1e300, 1 << 31, 1 << 60, True, "word", [], ["a"], {}, {"full_attention": 1}, [[1]])
NO_ROPES = (
    ROPE | {"rope_theta": "x"}, ROPE | {"partial_rotary_factor": 1e300}, ROPE | {"partial_rotary_factor": "x"},
    ROPE | {"rope_type": "yarn", "factor": -1, "original_max_position_embeddings": 32}, ROPE | {"rope_type": ["yarn"]},
    ROPE | {"rope_type": "llama3", "factor": 0, "low_freq_factor": 1, "high_freq_factor": "x"},
    {"full_attention": ROPE | {"rope_type": "proportional", "partial_rotary_factor": 1e12}, "sliding_attention": ROPE},
)  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gemma4", "falcon two norms"])
def test_a_config_of_any_values_is_refused_or_goes_out(name, tmp_path):
    """Nothing but an error of this package leaves, and soon, whatever a file says of its model."""
    config, refused = conversions.CONFIGS[name](), 0
    said = config.to_dict()
    model = next(each for each in ARCHITECTURES if each.model_type == config.model_type)
    embeddings = next(row.name for row in model.rows if row.parts == ("token_embd.weight",))
    keys = [key for key, value in said.items() if type(value) is int and "token" not in key]
    cases = [(key, value) for key in keys for value in NO_NUMBERS[:: 1 if "num" in key or "head" in key else 4]]
    cases += [("rope_parameters", value) for value in (*NO_ROPES, *NO_NUMBERS)]
    for number, (key, value) in enumerate(cases):
        documents = {"config.json": json.dumps(said | {key: value}).encode()}
        tensors = {f"x{i}": np.ones(1, np.float32) for i in range(8)} | {embeddings: np.ones((8, 64), np.float32)}
        stated = {"model.architecture": model.architecture}
        file = small(tmp_path / f"{number}.aibit", tensors, documents, stated)
        with file, pytest.raises(WriteError) as error:
            export(file, str(tmp_path / "m.gguf"))
        refused += "x0" not in str(error.value)  # the config, and not the tensor that has no place
    assert refused > len(NO_ROPES) and not list(tmp_path.glob("m.gguf*"))


def test_rows_that_are_no_whole_blocks_go_out_as_float16(tmp_path):
    config = transformers.LlamaConfig(**SMALL | {"intermediate_size": 80})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="keep")
    types = {t.name: t.type for t in written(tmp_path / "m.aibit", tmp_path / "m.gguf", type="q4_0").tensors}
    assert types["blk.0.ffn_down.weight"] == "f16" and types["blk.0.ffn_up.weight"] == "q4_0"


def test_what_is_no_model_takes_schemes_by_name_only_and_goes_back(tmp_path):
    """No type and no scheme is for all of it: nothing says which tensors are weights of Linear layers."""
    charsmap = np.arange(7, dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "strange")
    writer.add_precompiled_charsmap(charsmap.tobytes())
    for name in ("a", "b"):
        writer.add_tensor(f"{name}.weight", np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32))
    finish(writer)
    with pytest.raises(RecipeError, match="nothing says which tensors int8 is for"):
        aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", scheme="int8")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", tensors={"a": "gguf:q8_0"})
    found = written(tmp_path / "m.aibit", tmp_path / "b.gguf")
    assert {tensor.name: tensor.type for tensor in found.tensors} == {"a.weight": "q8_0", "b.weight": "f32"}
    kept = found.metadata["tokenizer.ggml.precompiled_charsmap"]
    assert kept.dtype == np.uint8 and np.array_equal(kept, charsmap)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "i.aibit", tensors={"a": "int8"})
    with pytest.raises(WriteError, match=r"'a\.weight' is in int8.*, which GGUF lacks"):
        written(tmp_path / "i.aibit", tmp_path / "i.gguf", overwrite=True)


def test_of_two_forms_of_a_model_that_goes_out_which_keeps_more_blocks(tmp_path):
    """A matrix for keys and values goes out whole where it is in blocks, and in two where it is not."""
    for kind, wanted in (("q8_0", {"attn_kv_b"}), ("f32", {"attn_k_b", "attn_v_b"})):
        convert(model_of("deepseek2 whole"), "deepseek2 whole", tmp_path / "m.gguf", kind)
        aibit.convert(tmp_path / "m.gguf", tmp_path / f"{kind}.aibit", scheme="keep")
        found = written(tmp_path / f"{kind}.aibit", tmp_path / f"{kind}.gguf", overwrite=True)
        names = {tensor.name.split(".")[2] for tensor in found.tensors if tensor.name.endswith("_b.weight")}
        assert names - {"attn_q_b"} == wanted
        assert found.metadata["deepseek2.attention.head_count_kv"] == (4 if kind == "q8_0" else 1)


def test_k_quants_are_encoded_and_rows_that_are_no_whole_blocks_fall_back(tmp_path):
    config = transformers.LlamaConfig(**SMALL | {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 1})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "f32.aibit", scheme="keep")
    aibit.convert(tmp_path / "hf", tmp_path / "q4_k.aibit", scheme="gguf:q4_k")
    found = {t.name: t for t in written(tmp_path / "f32.aibit", tmp_path / "m.gguf", type="q4_k").tensors}
    assert found["blk.0.attn_v.weight"].type == found["blk.0.ffn_up.weight"].type == "q4_k"
    assert found["blk.0.ffn_down.weight"].type == "q5_0"  # rows of 288
    direct = written(tmp_path / "q4_k.aibit", tmp_path / "n.gguf", overwrite=True)
    wanted = {t.name: direct.read(t) for t in direct.tensors}
    again = written(tmp_path / "f32.aibit", tmp_path / "m.gguf", type="q4_k", overwrite=True)
    for name in ("blk.0.attn_v.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"):
        assert again.read(found[name]).tobytes() == wanted[name].tobytes()
