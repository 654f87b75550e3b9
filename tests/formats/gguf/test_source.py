"""GGUF in and out: blocks bit for bit, models as transformers' own loader reads them, tokenizers, hostile files."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from itertools import pairwise, product

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.tokenization_utils_base import generate_merges

import aibit_format as aibit
from aibit_format.cli.inspect import describe
from aibit_format.errors import MissingPackageError, SchemeError, SourceError, WriteError
from aibit_format.formats.gguf import rope, tokenizer_in
from aibit_format.formats.gguf.architectures import FAMILIES, config_of
from aibit_format.formats.gguf.export import export
from aibit_format.formats.gguf.file import GGUFFile
from aibit_format.formats.sources import open_source
from aibit_format.schemes import make, parse
from aibit_format.schemes.ggml import LAYOUTS

transformers.utils.logging.disable_progress_bar()
NAMES = list(LAYOUTS)
ENCODED = [name for name in NAMES if LAYOUTS[name].encode]
TEXTS = [
    "If the queue is not required, it is returned.",
    "  two spaces,\n\n\t a tab and l'\u00e9t\u00e9 \u4f60\u597d \U0001f999 12345 don't",
    "<|user|>hi<|assistant|></s> <s>x <|endoftext|>",
    "",
]


def kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.removeprefix("gguf:").upper()]


def random_blocks(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Blocks of any bytes, with finite scales of a size that keeps a model's activations finite."""
    random, layout = np.random.default_rng(seed), LAYOUTS[name]
    rows = random.integers(0, 256, (*shape[:-1], shape[-1] // layout.block * layout.size), np.uint8)
    blocks, start = rows.reshape(-1, layout.size), 0
    for field, size in layout.fields.items():
        if field in ("d", "dmin", "m"):
            scales = random.normal(size=(len(blocks), 1)) * 10.0 ** -random.integers(2, 7, (len(blocks), 1))
            blocks[:, start : start + 2] = scales.astype("<f2").view(np.uint8)
        start += size
    return rows


# Schemes


@pytest.mark.parametrize("name", NAMES)
def test_blocks_decode_as_in_gguf_py_in_any_rows(name):
    assert (LAYOUTS[name].block, LAYOUTS[name].size) == gguf.GGML_QUANT_SIZES[kind(name)]
    shape = (3, 7, 512)
    blocks = random_blocks(name, shape)
    scheme, planes = make(name), {"blocks": blocks}
    wanted = gguf.quants.dequantize(blocks, kind(name))
    assert scheme.decode(planes, shape, "f16").tobytes() == wanted.tobytes()
    rows = wanted.reshape(21, 512)
    for some in (slice(5, 9), slice(4, 4), slice(0, 21, 4), np.array([20, 3, 3, 0])):
        assert scheme.decode_rows(planes, shape, "f16", some).tobytes() == rows[some].tobytes()
    assert not list(scheme.bad_codes(planes, ()))
    assert parse(scheme.text) == scheme and scheme.planes((0, 512), "f32")[0].shape[0] == 0
    assert scheme.decode({"blocks": blocks[:0]}, (0, 7, 512), "f32").shape == (0, 7, 512)


@pytest.mark.parametrize("name", ENCODED)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_values_encode_as_in_gguf_py(name, data):
    numbers = st.floats(-60000, 60000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)
    grid = st.integers(-64, 64).map(lambda i: i / 16)  # halves, where rounding has to choose
    values = data.draw(hnp.arrays(np.float32, (2, 64), elements=st.one_of(numbers, grid)))
    blocks = make(name).encode(values, "f32")["blocks"]
    with np.errstate(all="ignore"):
        assert blocks.tobytes() == gguf.quants.quantize(values, kind(name)).tobytes()


@pytest.mark.parametrize("name", ENCODED)
def test_encoding_in_pieces_and_its_error_bound(name, monkeypatch):
    values = np.random.default_rng(1).normal(size=(50, 96)).astype(np.float32)
    values[7], values[8] = 0, -2.5
    whole = make(name).encode(values, "f32")["blocks"]
    monkeypatch.setattr("aibit_format.schemes.ggml._PIECE", 128)
    assert make(name).encode(values, "f32")["blocks"].tobytes() == whole.tobytes()
    decoded = make(name).decode({"blocks": whole}, values.shape, "f32")
    blocks, found = values.reshape(-1, 32), decoded.reshape(-1, 32)
    # The bounds of spec/schemes/ggml.md: a step, half of one for equal steps and q8_0, and the scale's rounding.
    span, most = np.ptp(blocks, axis=1), np.abs(blocks).max(axis=1)
    bound = {
        "gguf:q4_0": most / 8, "gguf:q5_0": most / 16, "gguf:q4_1": span / 30, "gguf:q5_1": span / 62,
        "gguf:q8_0": most / 254,
    }[name] + (most + span) * 2.0**-10  # fmt: skip
    assert (np.abs(found - blocks).max(axis=1) <= bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_scheme_refuses(name):
    scheme, layout = make(name), LAYOUTS[name]
    with pytest.raises(SchemeError, match=f"blocks of {layout.block} elements, found {layout.block + 16}"):
        scheme.planes((2, layout.block + 16), "f32")
    with pytest.raises(SchemeError, match="floating-point"):
        scheme.planes((2, 256), "i32")
    values = np.ones((2, 256), np.float32)
    values[1, 3] = np.nan
    with pytest.raises(SchemeError, match="not finite" if layout.encode else "kept as llama.cpp made it"):
        scheme.encode(values, "f32")
    if layout.encode:
        with pytest.raises(SchemeError, match="beyond float16"):
            scheme.encode(np.array([[3e38, -3e38] * 16], np.float32), "f32")
    start = 0
    for field, size in layout.fields.items():
        if field in ("d", "dmin", "m"):
            for scale in (np.inf, -np.inf, np.nan):
                blocks = random_blocks(name, (2, 256))
                blocks.reshape(-1, layout.size)[-1, start : start + 2] = np.array([scale], "<f2").view(np.uint8)
                found = list(scheme.bad_codes({"blocks": blocks}, ()))
                assert found == [("blocks", f"a scale ({field}) is not finite")]
        start += size


# Models

SMALL = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama-tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-bias": lambda: transformers.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=32),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=1024, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, initializer_range=0.1
    ),
}
IDS = torch.tensor([[5, 900, 77, 300, 2, 8, 8, 41]])


@pytest.fixture(scope="module")
def models(tmp_path_factory, fixtures):
    """A function: the folder of a small random model of that name, as a file of this package, and its configuration."""
    folder = tmp_path_factory.mktemp("models")

    def made(name: str, **changes):
        path = folder / "-".join([name, *map(str, changes)])
        if not path.exists():
            torch.manual_seed(0)
            config = CONFIGS[name]()
            for key, value in changes.items():
                setattr(config, key, value)
            model = transformers.AutoModelForCausalLM.from_config(config).eval()
            for key, value in model.named_parameters():
                if "norm" in key or "ln_" in key or "bias" in key:
                    value.data += torch.randn_like(value) * 0.2
            model.save_pretrained(path / "hf")
            if name == "gpt2":  # by which transformers' loader knows the size of its vocabulary
                shutil.copy(fixtures / "models" / "tiny-gpt2" / "tokenizer.json", path / "hf")
            aibit.convert(path / "hf", path / "m.aibit", scheme="keep")
        return path

    return made


def written(path, out, **options) -> GGUFFile:
    """The GGUF file that the ``.aibit`` file ``path`` becomes."""
    with aibit.open(path) as file:
        assert export(file, str(out), **options) == [str(out), str(out.parent / "Modelfile")]
    return GGUFFile(str(out))


def theirs(path, **options):
    """The model that transformers' own loader makes of a GGUF file, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **options
    ).eval()


def weights(path) -> dict[str, np.ndarray]:
    """Values by name, laid out as the architecture wants them."""
    with aibit.open(path, verify="full") as file:
        found = {name: (file.dequantize(name), file.info(name)) for name in file}
    return {name: values.T if info.transposed else values for name, (values, info) in found.items()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_goes_out_and_transformers_reads_it(name, models, tmp_path):
    source = models(name)
    original = aibit.load_model(source / "m.aibit")
    file = written(source / "m.aibit", tmp_path / "exact.gguf")
    assert {t.type for t in file.tensors} == {"f32"}
    assert ("output.weight" in {t.name for t in file.tensors}) == (name in ("llama", "llama-bias"))
    if name != "llama-bias":  # transformers' loader reads no attention_bias
        found = theirs(tmp_path / "exact.gguf")
        assert torch.equal(logits(found), logits(original))
    file = written(source / "m.aibit", tmp_path / "q8.gguf", type="q8_0", overwrite=True)
    small = {t.name for t in file.tensors if len(t.shape) == 1 or t.name == "position_embd.weight"}
    assert {t.name for t in file.tensors if t.type == "f32"} == small
    assert {t.type for t in file.tensors if t.name not in small} == {"q8_0"}


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "q8_0"), ("llama-tied", "f16"), ("qwen2", "q5_1"), ("gpt2", "q8_0"), ("gpt2", "bf16")]
)
def test_a_model_comes_in_as_transformers_reads_it(name, kind, models, tmp_path):
    written(models(name) / "m.aibit", tmp_path / "m.gguf", type=kind)
    report = aibit.convert(tmp_path / "m.gguf", tmp_path / "b.aibit", scheme="keep")
    assert not report.unused and all(t.error is None for t in report.tensors if t.scheme.startswith("gguf:"))
    reference = theirs(tmp_path / "m.gguf")
    state = reference.state_dict()
    found = weights(tmp_path / "b.aibit")
    assert found.keys() == state.keys()
    for key, values in found.items():
        assert np.array_equal(values, state[key].numpy()), key
    model = aibit.load_model(tmp_path / "b.aibit")
    wanted = logits(reference.to(model.dtype))
    assert (logits(model) - wanted).abs().max() < 2e-2 * wanted.abs().max()
    before, after = aibit.load_model(models(name) / "m.aibit").config.to_dict(), model.config.to_dict()
    assert {key for key in before if before[key] != after.get(key)} <= {
        "dtype", "transformers_version", "n_inner", "initializer_range"
    }  # fmt: skip


def test_the_same_model_comes_back_from_f32(models, tmp_path):
    """Biases of Llama, and rotary scaling: transformers' loader knows neither."""
    for name, changes in (("llama-bias", {}), ("llama", {"rope_parameters": LLAMA3})):
        source = models(name, **changes)
        file = written(source / "m.aibit", tmp_path / "m.gguf", overwrite=True)
        assert ("rope_freqs.weight" in {t.name for t in file.tensors}) == (name == "llama")
        aibit.convert(tmp_path / "m.gguf", tmp_path / "b.aibit", scheme="keep", overwrite=True)
        model, original = aibit.load_model(tmp_path / "b.aibit"), aibit.load_model(source / "m.aibit")
        assert model.config.rope_parameters == original.config.rope_parameters
        assert torch.equal(logits(model), logits(original))


def ten_types(path, **keys) -> dict[str, np.ndarray]:
    """Write a Llama whose matrices are of all ten types, with gguf-py alone; the blocks by GGUF's names."""
    width, rows = 256, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(256)
    writer.add_block_count(2)
    writer.add_head_count(8)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_name("ten types")
    writer.add_vocab_size(rows)
    for key, value in keys.items():
        writer.add_uint32(f"llama.{key}", value)
    shapes = {
        "attn_q": (width, width), "attn_k": (128, width), "attn_v": (128, width), "attn_output": (width, width),
        "ffn_gate": (256, width), "ffn_up": (256, width), "ffn_down": (width, 256),
    }  # fmt: skip
    matrices = {"token_embd": (rows, width), "output": (rows, width)}
    matrices |= {f"blk.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    arrays = {}
    random = np.random.default_rng(0)
    for i, (name, shape) in enumerate(matrices.items()):
        scheme = NAMES[i % len(NAMES)]
        if LAYOUTS[scheme].encode:
            blocks = gguf.quants.quantize(random.normal(size=shape).astype(np.float32) / 16, kind(scheme))
        else:
            blocks = random_blocks(scheme, shape, i)
        arrays[f"{name}.weight"] = blocks
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind(scheme))
    norms = ["output_norm", *(f"blk.{i}.{name}" for i in range(2) for name in ("attn_norm", "ffn_norm"))]
    for name in norms:
        arrays[f"{name}.weight"] = 1 + random.integers(-8, 8, width).astype(np.float32) / 64
        writer.add_tensor(f"{name}.weight", arrays[f"{name}.weight"])
    finish(writer)
    return arrays


def finish(writer) -> None:
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


def test_blocks_of_all_ten_types_return_untouched(tmp_path):
    arrays = ten_types(tmp_path / "m.gguf")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert {file.info(name).scheme.name for name in file} == {*NAMES, "bf16"}
        assert file.check_document("config.json")["dtype"] == "bfloat16"
    again = written(tmp_path / "m.aibit", tmp_path / "again.gguf")
    assert {t.name for t in again.tensors} == set(arrays) and again.metadata["general.name"] == "ten types"
    for tensor in again.tensors:
        assert again.read(tensor).tobytes() == arrays[tensor.name].tobytes(), tensor.name
    found, state = weights(tmp_path / "m.aibit"), theirs(tmp_path / "m.gguf").state_dict()
    assert found.keys() == state.keys() and all(np.array_equal(found[key], state[key].numpy()) for key in found)


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


def test_what_came_from_gguf_can_be_quantized_anew(models, tmp_path):
    written(models("gpt2") / "m.aibit", tmp_path / "m.gguf", type="q8_0")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "blocks.aibit")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "rows.aibit", scheme="int8")
    before, after = weights(tmp_path / "blocks.aibit"), weights(tmp_path / "rows.aibit")
    with aibit.open(tmp_path / "rows.aibit") as file:
        assert file.info("transformer.h.0.mlp.c_fc.weight").scheme.name == "int8"
        assert file.info("transformer.wte.weight").scheme.name == "gguf:q8_0"
    for name, values in before.items():
        assert np.abs(after[name] - values).max() <= np.abs(values).max() / 254 * 1.01, name


# Tokenizers


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_a_real_tokenizer_comes_back(name, fixtures, tmp_path):
    folder = fixtures / "models" / name
    aibit.convert(folder, tmp_path / "m.aibit")
    file = written(tmp_path / "m.aibit", tmp_path / "m.gguf", type="f16")
    assert file.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert file.metadata["tokenizer.ggml.add_bos_token"] == (name == "tiny-llama")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "b.aibit")
    found, original = aibit.load_tokenizer(tmp_path / "b.aibit"), aibit.load_tokenizer(tmp_path / "m.aibit")
    library = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        ids = original(text)["input_ids"]
        assert found(text)["input_ids"] == ids and found.decode(ids) == original.decode(ids)
        assert found.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)
    assert library(TEXTS[1])["input_ids"] == found(TEXTS[1])["input_ids"]
    assert found.special_tokens_map == original.special_tokens_map and len(found) == len(original)
    assert found.chat_template == original.chat_template
    end = original.eos_token
    assert (tmp_path / "Modelfile").read_text() == f'FROM ./m.gguf\nPARAMETER stop "{end}"\n'


SPM = [
    "<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"\u2581abcdefgh", "<|x|>", "\u2581ab", "ab", "bc",
    "abc", "\u2581abc", "cd", "de", "cde", "\u2581a", "gh", "fgh", "\u2581\u2581",
]  # fmt: skip


def sentencepiece(path, **keys) -> dict[str, float]:
    """A model with a small SentencePiece vocabulary; its pieces and their scores."""
    writer = gguf.GGUFWriter(path, "llama")
    scores = {piece: -float((i * 37) % 91) for i, piece in enumerate(SPM)}
    kinds = [2, 3, 3, *[6] * 256, *[1] * 9, 4, *[1] * (len(SPM) - 269)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(SPM)
    writer.add_token_scores(list(scores.values()))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in keys.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    writer.add_chat_template([{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ b }}"}])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    one = np.ones((32, 32), np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", one)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", one[0])
    writer.add_tensor("token_embd.weight", np.ones((len(SPM) + 3, 32), np.float32))
    finish(writer)
    return scores


def merged(text: str, scores: dict[str, float]) -> list[int]:
    """SentencePiece's algorithm: join the two neighbours whose piece has the best score, the leftmost of equals."""
    parts = list(text)
    while True:
        joined = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not joined:
            break
        _, i = min(joined)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids = {piece: i for i, piece in enumerate(SPM)}
    return [j for part in parts for j in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    scores = sentencepiece(path)
    aibit.convert(path, path.with_suffix(".aibit"), scheme="keep")
    return path, scores, aibit.load_tokenizer(path.with_suffix(".aibit"))


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("abcdefgh \u00e9\U0001f999"), max_size=12))
def test_sentencepiece_tokenizes_as_the_algorithm_does(spm, text):
    _, scores, tokenizer = spm
    wanted = merged("\u2581" + text.replace(" ", "\u2581"), scores) if text else []
    assert tokenizer(text)["input_ids"] == [1, *wanted]
    assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text


def test_sentencepiece_special_tokens_templates_and_the_way_back(spm, tmp_path):
    path, scores, tokenizer = spm
    library = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in ("abc abc de", "a cde\u00e9fgh", "abcd  abc"):
        assert tokenizer(text)["input_ids"] == library(text)["input_ids"]
    # A space before each piece of text between special tokens, as llama.cpp has it.
    assert tokenizer("a<|x|>b</s>")["input_ids"] == [1, *merged("\u2581a", scores), 268, *merged("\u2581b", scores), 2]
    assert tokenizer.chat_template == {"default": "{{ a }}", "tool_use": "{{ b }}"}
    file, before = written(path.with_suffix(".aibit"), tmp_path / "b.gguf"), GGUFFile(str(path))
    size = len(SPM)
    for key in ("tokens", "token_type"):
        assert list(file.metadata[f"tokenizer.ggml.{key}"])[:size] == list(before.metadata[f"tokenizer.ggml.{key}"])
    assert file.metadata["tokenizer.ggml.tokens"][size:] == [f"[PAD{i}]" for i in range(size, size + 3)]
    for key in ("ggml.model", "ggml.bos_token_id", "ggml.unknown_token_id", "chat_template", "chat_template.tool_use"):
        assert file.metadata[f"tokenizer.{key}"] == before.metadata[f"tokenizer.{key}"], key
    aibit.convert(tmp_path / "b.gguf", tmp_path / "b.aibit", scheme="keep")
    again = aibit.load_tokenizer(tmp_path / "b.aibit")
    for text in [*TEXTS, "abcde fgh ab"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_merges_of_equal_scores_come_in_the_order_of_transformers():
    tokens = ["".join(letters) for length in range(1, 6) for letters in product("ab", repeat=length)]
    scores = [-float(i % 3) for i in range(len(tokens))]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
    }  # fmt: skip
    document = json.loads(tokenizer_in.documents_of(metadata, len(tokens), 64)["tokenizer.json"])
    wanted = generate_merges({token: i for i, token in enumerate(tokens)}, dict(zip(tokens, scores, strict=True)))
    assert [tuple(merge) for merge in document["model"]["merges"]] == wanted and len(wanted) == 196


def test_no_space_before_the_text_where_the_file_says_so(tmp_path):
    scores = sentencepiece(tmp_path / "m.gguf", add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    tokenizer = aibit.load_tokenizer(tmp_path / "m.aibit")
    assert tokenizer("abc de")["input_ids"] == [*merged("abc\u2581de", scores), 2]
    assert tokenizer.decode(tokenizer(" abc")["input_ids"], skip_special_tokens=True) == " abc"
    metadata = written(tmp_path / "m.aibit", tmp_path / "b.gguf").metadata
    assert not metadata["tokenizer.ggml.add_space_prefix"] and not metadata["tokenizer.ggml.add_bos_token"]
    assert metadata["tokenizer.ggml.add_eos_token"]


def test_the_expressions_that_cut_text_are_those_of_transformers():
    known = {name: pre.cuts for pre in tokenizer_in.PRE for name in pre.names}
    both = known.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()
    assert {"llama-bpe", "qwen2", "tekken", "gpt-4o"} <= both
    for name in both:
        assert known[name] == (GGUF_PRE_TOKENIZER_SPLITS[name],)


def byte_level(merges=(), pre="gpt-2", kinds=None, **keys) -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": ["a", "b", "ab", "<|e|>"],
        "tokenizer.ggml.token_type": np.array(kinds or [1, 1, 1, 3], np.int32), "tokenizer.ggml.merges": list(merges),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "0 tokens"),
        (byte_level(model="rwkv"), "'rwkv' is unknown here"),
        (byte_level(pre="of mine"), "'of mine' is unknown here"),
        (byte_level(merges=["a c"]), "entry 0, 'a c'"),
        (byte_level(merges=["ab"]), "entry 0, 'ab'"),
        (byte_level(kinds=[1, 1]), "2 entries for 4 tokens"),
        (byte_level(eos_token_id=4), "is 4, there are 4 tokens"),
        (byte_level(bos_token_id="x"), "is a str, a int is needed"),  # noqa: S106
        (byte_level(tokens=["a"] * 9), "9 tokens, the embeddings 8 rows"),
    ],
)
def test_a_damaged_tokenizer_is_refused(metadata, message):
    with pytest.raises(SourceError, match=message):
        tokenizer_in.documents_of(metadata, 8, 64)


def test_a_model_without_a_tokenizer_that_is_known_is_still_a_model(tmp_path):
    ten_types(tmp_path / "m.gguf")
    source = open_source(tmp_path / "m.gguf")
    assert source.no_model is None and "tokenizer.json" not in source.documents
    assert "0 tokens" in json.loads(source.documents["gguf.json"])["aibit.no_tokenizer"]


# What is no model here, and what is refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_count": 4}, "llama.expert_count is 4"),
        ({"attention.key_length": 16}, "'blk.0.attn_q.weight' has shape [256, 256], for 8 heads of 16"),
        ({"rope.dimension_count": 16}, "rope.dimension_count is 16, the heads have 32"),
        ({"attention.sliding_window": 128}, "sliding_window is 128"),
    ],
)
def test_a_llama_that_transformers_has_not_keeps_its_tensors(keys, message, tmp_path):
    arrays = ten_types(tmp_path / "m.gguf", **keys)
    source = open_source(tmp_path / "m.gguf")
    assert message in source.no_model and set(source.tensors) == set(arrays)
    aibit.convert(source, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert message in file.metadata["model.missing"]
        assert file.planes("blk.0.attn_q.weight")["blocks"].tobytes() == arrays["blk.0.attn_q.weight"].tobytes()
        assert file.check_document("gguf.json")["llama.block_count"] == 2
        with pytest.raises(WriteError, match="holds tensors but no model"):
            export(file, str(tmp_path / "b.gguf"))


@pytest.mark.parametrize("shape", [(), (256,), (1, 256, 256)])
def test_what_is_no_matrix_has_no_rows_to_reorder(shape, tmp_path):
    ten_types(tmp_path / "m.gguf")
    file = GGUFFile(str(tmp_path / "m.gguf"))
    shapes = {tensor.name: tensor.shape for tensor in file.tensors} | {"blk.0.attn_q.weight": shape}
    with pytest.raises(SourceError, match=r"'blk.0.attn_q.weight' has shape .*, for 8 heads of 32"):
        config_of(FAMILIES["llama"], file.metadata, shapes, None)


def plain(path, architecture="strange", name="blk.0.w", array=None, raw=None, **keys) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        writer.add_uint16(key, value) if key.startswith("split") else writer.add_uint32(key, value)
    writer.add_array("strange.list", [1.5, float("nan")])
    writer.add_tensor(name, np.ones((2, 32), np.float32) if array is None else array, raw_dtype=raw)
    finish(writer)


def test_another_architecture_is_kept_under_its_own_names(tmp_path):
    plain(tmp_path / "m.gguf")
    source = open_source(str(tmp_path / "m.gguf"))
    assert "architecture 'strange' is unknown here" in source.no_model and source.kind == "gguf"
    assert json.loads(source.documents["gguf.json"])["strange.list"] == [1.5, "nan"]
    aibit.convert(source, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        assert np.array_equal(file.dequantize("blk.0.w"), np.ones((2, 32)))


@pytest.mark.parametrize("key", ["general.alignment", "split.count", "llama.expert_count", "llama.block_count"])
def test_lists_where_numbers_are_needed_are_refused(key, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array(key, [1, 2])
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    finish(writer)
    try:
        assert "llama." in open_source(str(tmp_path / "m.gguf")).no_model
    except SourceError as error:
        assert key.split(".")[0] in ("general", "split") and "m.gguf" in str(error)


def test_types_without_a_scheme_and_parts_of_files_are_refused(tmp_path):
    plain(tmp_path / "iq.gguf", array=np.zeros((2, 18), np.uint8), raw=gguf.GGMLQuantizationType.IQ4_NL)
    with pytest.raises(SourceError, match=r"iq\.gguf: tensor 'blk\.0\.w' is iq4_nl, which has no scheme here"):
        open_source(str(tmp_path / "iq.gguf"))
    plain(tmp_path / "part.gguf", **{"split.no": 1, "split.count": 3})
    with pytest.raises(SourceError, match="part 1 of 3"):
        open_source(str(tmp_path / "part.gguf"))


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(name="w", dims=(32,), number=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)


def raw_file(tensors=(), entries=(), version=3, data=bytes(256), counts=None) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(entries))))
    body = header + b"".join(entries) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + data


def pair(key, number, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", number) + value


HUGE = 1 << 63


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "do not fit"),
        (b"GGUF", "do not fit"),
        (b"GGML" + raw_file()[4:], "does not begin with GGUF"),
        (raw_file(version=1), "version 1"),
        (raw_file(version=0x03000000), "version 50331648"),
        (raw_file(counts=(HUGE, 0)), f"{HUGE} items"),
        (raw_file(counts=(0, HUGE)), f"{HUGE} items"),
        (raw_file(entries=[struct.pack("<QQ", HUGE, 0)]), "string 0 of 1 ends beyond"),
        (raw_file(entries=[pair(b"\xff", 4, bytes(4))]), "not UTF-8"),
        (raw_file(entries=[pair("a", 99, bytes(8))]), "unknown metadata type 99"),
        (raw_file(entries=[pair("a", 7, b"\2")]), "a bool at"),
        (raw_file(entries=[pair("a", 4, bytes(4)), pair("a", 4, bytes(4))]), "'a' is there twice"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 4, HUGE))]), f"{HUGE} items"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 8, HUGE))]), f"{HUGE} items"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQQ", 8, 1, HUGE))]), "string 0 of 1 ends beyond"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 9, 1) + bytes(8))]), "nested or unknown"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 7, 1) + b"\7")]), "others than 0 and 1"),
        *[(raw_file(entries=[pair("general.alignment", 4, struct.pack("<I", n))]), f"general.alignment {n}")
          for n in (0, 4, 48, 1 << 30)],
        (raw_file([entry(dims=(1,) * 9)]), "rank 9"),
        (raw_file([entry(number=77)]), "unknown type 77"),
        (raw_file([entry(dims=(33,), number=2)]), "rows of 33 are not whole blocks of 32"),
        (raw_file([entry(dims=(HUGE, HUGE))]), "the file at"),
        (raw_file([entry(dims=(128,))]), "the file at"),
        (raw_file([entry(offset=256)]), "the file at"),
        (raw_file([entry(offset=(1 << 64) - 32)]), "the file at"),
        (raw_file([entry(offset=4)]), "not a multiple of 32"),
        (raw_file([entry(), entry("v")]), "inside another that ends at 128"),
        (raw_file([entry(), entry(offset=128)]), "is there twice"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused(content, message, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as error:
        GGUFFile(str(path))
    assert str(path) in str(error.value)


def test_every_truncation_is_refused_and_the_whole_is_not(tmp_path):
    whole = raw_file([entry()], [pair("k", 9, struct.pack("<IQ", 8, 2) + text("x") + text("yz"))], data=bytes(128))
    path = tmp_path / "m.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            GGUFFile(str(path))
    path.write_bytes(whole)
    assert GGUFFile(str(path)).metadata == {"k": ["x", "yz"]}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(hostile, data):
    whole, path = hostile
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, len(whole) - 1024))
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        source = open_source(str(path))
        for name, tensor in source.tensors.items():
            (plane,) = tensor.stored.planes(tensor.shape, tensor.dtype)
            assert source.planes(name)[plane.role].shape == plane.shape
        assert all(isinstance(document, bytes) for document in source.documents.values())
    except SourceError:
        pass


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "m.gguf"
    sentencepiece(path)
    whole = path.read_bytes()
    return whole, path.with_name("damaged.gguf")


def test_all_of_a_vocabulary_is_read_and_little_of_it_shown(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "strange")
    writer.add_token_list([f"t{i}" for i in range(5000)])
    writer.add_token_scores([0.5] * 5000)
    finish(writer)
    assert GGUFFile(str(tmp_path / "m.gguf")).metadata["tokenizer.ggml.tokens"][4999] == "t4999"
    assert len(describe(str(tmp_path / "m.gguf"))["metadata"]["tokenizer.ggml.tokens"]) == 1000


# Rotary embeddings


@pytest.mark.parametrize(
    ("theta", "head_dim", "factor", "high", "old"),
    [(5e5, 128, 8.0, 4.0, 8192), (5e5, 64, 32.0, 4.0, 8192), (1e4, 64, 4.0, 8.0, 1024), (1e4, 16, 8.0, 4.0, 64)],
)
def test_llama3_scaling_is_found_again_in_its_factors(theta, head_dim, factor, high, old):
    parameters = {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
        "original_max_position_embeddings": old,
    }  # fmt: skip
    factors = rope.frequency_factors(parameters, head_dim)
    found = rope.llama3_parameters(factors, theta)
    config = {"hidden_size": head_dim, "num_attention_heads": 1, "max_position_embeddings": 1 << 17}
    wanted, again = (
        ROPE_INIT_FUNCTIONS["llama3"](transformers.LlamaConfig(**config, rope_parameters=dict(p)), "cpu")[0]
        for p in (parameters, found)
    )
    torch.testing.assert_close(again, wanted, rtol=1e-6, atol=0)
    default = theta ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    torch.testing.assert_close(default / torch.from_numpy(factors), wanted.double(), rtol=1e-5, atol=0)
    if head_dim >= 64:
        assert found == parameters


def test_factors_of_another_scaling_are_refused():
    for factors in (np.linspace(1, 40, 32), np.array([0.5] * 32), np.array([np.nan] * 32)):
        with pytest.raises(SourceError, match=r"rope_freqs\.weight"):
            rope.llama3_parameters(factors.astype(np.float32), 10000.0)


@pytest.mark.parametrize(
    ("parameters", "keys"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"freq_base": 5e5}),
        ({"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0},
         {"freq_base": 1e4, "scaling.type": "linear", "scaling.factor": 4.0}),
        ({"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
          "beta_fast": 16.0},
         {"freq_base": 1e4, "scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32,
          "scaling.yarn_beta_fast": 16.0}),
    ],
)  # fmt: skip
def test_rotary_scaling_goes_both_ways(parameters, keys):
    assert rope.to_gguf(parameters) == keys and rope.from_gguf(keys, None, 128) == parameters
    with pytest.raises(SourceError, match="no counterpart"):
        rope.to_gguf(parameters | {"rope_type": "dynamic"})
    with pytest.raises(SourceError, match="unknown here"):
        rope.from_gguf(keys | {"scaling.type": "longrope", "scaling.factor": 2.0}, None, 128)


# Writing


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
    with pytest.raises(ValueError, match="type='q4_k'"):
        written(path, tmp_path / "m.gguf", type="q4_k")
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


def test_rows_that_are_no_whole_blocks_go_out_as_float16(tmp_path):
    config = transformers.LlamaConfig(**SMALL | {"intermediate_size": 80})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="keep")
    types = {t.name: t.type for t in written(tmp_path / "m.aibit", tmp_path / "m.gguf", type="q4_0").tensors}
    assert types["blk.0.ffn_down.weight"] == "f16" and types["blk.0.ffn_up.weight"] == "q4_0"
