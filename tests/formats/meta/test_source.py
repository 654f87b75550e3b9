"""Llamas in Meta's form: state and logits of transformers, and logits of Meta's own arithmetic."""

from __future__ import annotations

import json

import pytest
import torch

import aibit_format as aibit
from aibit_format.errors import AibitError
from aibit_format.formats.sources import open_source
from tests.support import makers
from tests.support.makers import LLAMA as PARAMS
from tests.support.makers import LLAMA_SCALED as SCALED
from tests.support.makers import llama
from tests.support.makers import llamas_own as own


def same(folder, model, target):
    """Convert, load, and compare state and logits; returns the loaded model."""
    assert not aibit.convert(folder, target, scheme="f32").unused
    loaded, ids = aibit.load_model(target), torch.randint(3, 160, (2, 13), generator=torch.Generator().manual_seed(1))
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    return loaded, ids


@pytest.mark.parametrize(("parts", "embeddings"), [(1, 0), (2, 0), (2, 1)])
def test_a_llama_is_that_of_transformers_and_computes_what_metas_program_does(parts, embeddings, tmp_path):
    model = llama()
    tensors = own(model)
    folder = makers.write_parts(tmp_path / "m", makers.cut(tensors | {"rope.freqs": torch.ones(8)}, parts, embeddings),
                                PARAMS)  # fmt: skip
    source = open_source(folder)
    assert source.kind == "meta" and len(source.files) == parts
    assert source.metadata == {"source.left_out": ["1 tensors freqs"]}
    loaded, ids = same(folder, model, tmp_path / "m.aibit")
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, makers.forward(tensors, ids, PARAMS), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shares", [True, False])
def test_tied_embeddings_and_a_scaled_rotation(shares, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    model = llama(True, 256, rope_parameters=rope)
    tensors = own(model)
    if shares:  # torch.save writes the shared bytes once
        tensors["output.weight"] = tensors["tok_embeddings.weight"]
    folder = makers.write_parts(tmp_path / "m", [tensors], SCALED)
    loaded, _ = same(folder, model, tmp_path / "m.aibit")
    assert loaded.config.rope_parameters == rope and loaded.config.max_position_embeddings == 131072


def test_a_scaled_rotation_of_an_untied_model_is_that_of_llama_3_1(tmp_path):
    folder = makers.write_parts(tmp_path / "m", [own(llama(intermediate=256))], SCALED)
    config = json.loads(open_source(folder).documents["config.json"])
    assert config["rope_parameters"]["factor"] == 8.0 and not config["tie_word_embeddings"]


def test_a_directory_of_transformers_goes_before_the_makers_files(tmp_path):
    model = llama()
    folder = makers.write_parts(tmp_path / "m", [{"x": torch.ones(1)}], PARAMS)
    model.save_pretrained(folder)
    source = open_source(folder)
    assert source.kind == "huggingface" and [file.name for file in source.files] == ["model.safetensors"]


def without(name):
    return lambda params, parts: [part.pop(name) for part in parts]


def say(**more):
    return lambda params, parts: params.update(more)


def put(name, edit, part=1):
    return lambda params, parts: parts[part].update({name: edit(parts[part][name])})


DAMAGE = [
    (without("layers.1.attention.wq.weight"),
     r"needs tensors that the checkpoint lacks: .*layers\.1\.self_attn\.q_proj"),
    (without("tok_embeddings.weight"), r"'tok_embeddings\.weight' is missing"),
    (lambda params, parts: parts[1].pop("norm.weight"),
     r"consolidated\.00\.pth: tensor 'norm\.weight' is in 1 of 2 parts"),
    (lambda params, parts: parts.pop(),
     r"has shapes \[32, 64\] in 1 files, which do not make the \[64, 64\] of params\.json"),
    (put("norm.weight", lambda a: a + 1), r"'norm\.weight' is not the same in all parts"),
    (put("norm.weight", lambda a: a.half()), r"'norm\.weight' is f16 and f32 in parts"),
    (put("layers.0.attention.wo.weight", lambda a: a[:, :5]),
     r"wo\.weight' has shapes \[64, 32\], \[64, 5\] in 2 files"),
    (put("layers.0.attention.wk.weight", lambda a: a[None]), r"wk\.weight' has shapes .*params\.json"),
    (lambda params, parts: [part.update({"layers.0.attention.wz.weight": torch.ones(2)}) for part in parts],
     r"wz\.weight' is not one of a meta model"),
    (say(dim=65), r"params\.json: n_heads is 4, expected a divisor of dim, 65"),
    (say(dim=10**30), r"params\.json: dim is 1000+, expected a number from 1"),
    (say(dim="x"), r"params\.json: dim is 'x', expected a number from 1"),
    (say(n_heads=64, n_kv_heads=64), r"heads of an even size, not 1"),
    (say(n_kv_heads=3), r"n_kv_heads is 3, expected a divisor of n_heads, 4"),
    (say(n_layers=None), r"n_layers is None, expected a number from 1"),
    (say(multiple_of=256), r"feed_forward\.w1\.weight' has shapes .*\[256, 64\] of params\.json"),
    (say(norm_eps=float("nan")), r"params\.json: .*NaN"),
    (say(norm_eps=-1), r"norm_eps is -1, expected a number above 0"),
    (say(use_scaled_rope="yes"), r"use_scaled_rope is 'yes', expected true or false"),
    (say(vocab_size=161), r"(tok_embeddings|output)\.weight' has shapes"),
    (say(quantization_args={"group_size": 32}), r"key 'quantization_args' says that weights are quantized"),
    (say(moe_args={}), r"key 'moe_args' belongs to Llama 4"),
    (say(unheard=1), r"key 'unheard' means something that is not read here"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    params, parts = dict(PARAMS), makers.cut(own(llama()), 2, 0)
    damage(params, parts)
    folder = makers.write_parts(tmp_path / "bad", parts, params)
    with pytest.raises(AibitError, match=message) as caught:
        aibit.convert(folder, tmp_path / "m.aibit")
    assert "bad" in str(caught.value) or "checkpoint lacks" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_it_is_inspected(tmp_path):
    from aibit_format.cli.inspect import describe

    folder = makers.write_parts(tmp_path / "m", makers.cut(own(llama()), 2, 0), PARAMS)
    found = describe(str(folder))
    assert found["format"] == "directory (meta)" and found["metadata"]["model_type"] == "llama"
    (folder / "consolidated.01.pth").unlink()
    (folder / "consolidated.01.pth").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AibitError, match=r"consolidated\.01\.pth: is a link to .*, which is not there"):
        describe(str(folder))
    (folder / "params.json").unlink()
    (folder / "params.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AibitError, match=r"params\.json is a link to .*, which is not there"):
        open_source(folder)
