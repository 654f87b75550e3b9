"""Models in Mistral's form: state and logits are those of transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers as tf

import aibit_format as aibit
from aibit_format.errors import AibitError
from aibit_format.formats.sources import open_source
from tests.support import makers
from tests.support.block_checkpoints import decoded
from tests.support.makers import LLAMA, llama

SIZES: dict[str, Any] = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-5,
         "max_position_embeddings": 32768}  # fmt: skip
PARAMS = {"dim": 64, "n_layers": 2, "head_dim": 24, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
          "vocab_size": 160, "rope_theta": 10000.0}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 4,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
OWN_YARN = {"yarn": {"original_max_position_embeddings": 4, "factor": 16, "apply_scale": False, "beta": 32, "alpha": 1}}
VISION = {"hidden_size": 32, "num_channels": 3, "image_size": 64, "patch_size": 8, "intermediate_size": 48,
          "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
OWN_VISION = VISION | {"rope_theta": 10000.0, "max_image_size": 64, "image_token_id": 10, "image_break_token_id": 12,
                       "image_end_token_id": 13}  # fmt: skip
MERGED = {"adapter_bias": False, "mm_projector_id": "patch_merge", "spatial_merge_size": 2,
          "add_pre_mm_projector_layer_norm": True}  # fmt: skip


def text(**more) -> tf.MistralConfig:
    return tf.MistralConfig(**SIZES, **{"rope_parameters": ROPE, "sliding_window": None} | more)


def eye() -> tf.PixtralVisionConfig:
    return tf.PixtralVisionConfig(hidden_act="silu", **VISION)


def ministral(**more) -> tf.Ministral3Config:
    return tf.Ministral3Config(**SIZES, rope_parameters=YARN | {"llama_4_scaling_beta": 0.1}, **more)


# Name -> (class, its config, the maker's params).
MODELS = {
    "mistral": (tf.MistralForCausalLM, lambda: text(), {}),
    "sliding": (tf.MistralForCausalLM, lambda: text(sliding_window=8), {"sliding_window": "8"}),
    "yarn": (tf.MistralForCausalLM, lambda: text(rope_parameters=YARN), OWN_YARN),
    "mixtral": (
        tf.MixtralForCausalLM,
        lambda: tf.MixtralConfig(**SIZES, rope_parameters=ROPE, num_local_experts=4, num_experts_per_tok=2),
        {"moe": {"num_experts": 4, "num_experts_per_tok": 2}},
    ),
    "ministral3": (
        tf.Ministral3ForCausalLM, lambda: ministral(),
        OWN_YARN | {"llama_4_scaling": {"original_max_position_embeddings": 4, "beta": 0.1}},
    ),
    "ministral3-tied": (
        tf.Ministral3ForCausalLM, lambda: ministral(tie_word_embeddings=True),
        OWN_YARN | {"llama_4_scaling": {"original_max_position_embeddings": 4, "beta": 0.1}, "tied_embeddings": True},
    ),
    "mistral3": (
        tf.Mistral3ForConditionalGeneration,
        lambda: tf.Mistral3Config(vision_config=eye(), text_config=text(), multimodal_projector_bias=False,
                                  spatial_merge_size=2, image_token_index=10, tie_word_embeddings=False),
        {"vision_encoder": OWN_VISION | MERGED, "max_position_embeddings": 32768},
    ),
    "pixtral": (
        tf.LlavaForConditionalGeneration,
        lambda: tf.LlavaConfig(vision_config=eye(), text_config=text(), image_token_index=10, vision_feature_layer=-1,
                               vision_feature_select_strategy="full", image_seq_length=1),
        {"vision_encoder": OWN_VISION | {"adapter_bias": True}, "max_seq_len": 32768},
    ),
}  # fmt: skip


def made(name: str) -> tf.PreTrainedModel:
    family, config, _ = MODELS[name]
    torch.manual_seed(5)
    model = family(config()).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) * (0.2 if value.ndim > 1 else 1))
    return model


def own(model: tf.PreTrainedModel) -> makers.Tensors:
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return makers.own(state, 4, 2, 2)


def inputs(name: str) -> dict:
    """Text, and an image of 64 by 64 for a model that sees."""
    ids = torch.randint(14, 160, (1, 90), generator=torch.Generator().manual_seed(1))
    patches = {"mistral3": 16, "pixtral": 64}.get(name)
    if patches is None:
        return {"input_ids": ids}
    ids[0, 3 : 3 + patches] = 10
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "pixel_values": image, "image_sizes": torch.tensor([[64, 64]])}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_that_of_transformers(name, tmp_path):
    model = made(name)
    folder = makers.write_whole(tmp_path / "m", own(model), PARAMS | MODELS[name][2], 2 if name == "mistral" else 1)
    source = open_source(folder)
    assert source.kind == "mistral" and len(source.files) == (2 if name == "mistral" else 1)
    assert not aibit.convert(folder, tmp_path / "m.aibit", scheme="f32").unused
    loaded = aibit.load_model(tmp_path / "m.aibit")
    assert type(loaded) is type(model)
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    with torch.no_grad():
        assert torch.equal(loaded(**inputs(name)).logits, model(**inputs(name)).logits)


def test_parts_of_torch_are_mistrals_too(tmp_path):
    model = llama()
    params = {key: value for key, value in LLAMA.items() if key != "multiple_of"} | {
        "hidden_dim": 192,
        "vocab_size": 160,
    }
    folder = makers.write_parts(tmp_path / "m", makers.cut(makers.llamas_own(model), 2, 0), params)
    source = open_source(folder)
    assert source.kind == "mistral"
    for name, value in model.state_dict().items():
        assert torch.equal(torch.from_numpy(source.planes(name)["values"]), value)


def fp8(tensors: makers.Tensors) -> makers.Tensors:
    """Mistral's 8-bit form: codes and a scale for each matrix of a layer, and scales of inputs."""
    found = {}
    for number, (name, value) in enumerate(tensors.items()):
        if value.ndim < 2 or not name.startswith("layers.") or ".gate." in name:
            found[name] = value.bfloat16()
            continue
        scale = (value.abs().max() / 448).float() * (1 + number / 100)
        found |= {name: (value / scale).to(torch.float8_e4m3fn), f"{name.removesuffix('weight')}qscale_weight": scale,
                  f"{name.removesuffix('weight')}qscale_act": torch.ones(())}  # fmt: skip
    return found


@pytest.mark.parametrize("name", ["ministral3", "mixtral"])
def test_codes_of_8_bits_stay_as_they_are(name, tmp_path):
    tensors = fp8(own(made(name)))
    params = PARAMS | MODELS[name][2] | {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    folder = makers.write_whole(tmp_path / "m", tensors, params)
    source = open_source(folder)
    scales = sum(key.endswith("qscale_act") for key in tensors)
    assert source.metadata == {"source.left_out": [f"{scales} tensors qscale_act"]}
    key = "model.layers.1.self_attn.k_proj.weight"
    codes, scale = (tensors[f"layers.1.attention.wk.{end}"] for end in ("weight", "qscale_weight"))
    rows = torch.arange(48).view(2, 12, 2).transpose(1, 2).flatten()
    assert source.tensors[key].stored.text == "fp8-block,rows=all,columns=all"
    assert torch.equal(decoded(source, key), (codes.float() * scale)[rows])
    report = aibit.convert(folder, tmp_path / "m.aibit")
    kept = [tensor.name for tensor in report.tensors if tensor.kept]
    assert key in kept and not report.unused
    with torch.no_grad():
        loaded = aibit.load_model(tmp_path / "m.aibit")
        assert torch.isfinite(loaded(**inputs(name)).logits).all()


def test_the_files_of_transformers_go_before(tmp_path):
    model = made("mistral")
    folder = makers.write_whole(tmp_path / "m", {"x": torch.ones(1)}, PARAMS)
    model.save_pretrained(folder)
    assert [file.name for file in open_source(folder).files] == ["model.safetensors"]


def say(**more):
    return lambda params, tensors: params.update(more)


def inside(key, **more):
    return lambda params, tensors: params.update({key: params[key] | more})


def put(name, edit):
    return lambda params, tensors: tensors.update({name: edit(tensors[name])})


WQ = "layers.0.attention.wq"
FP8 = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
DAMAGE = [
    (lambda params, tensors: tensors.pop(f"{WQ}.qscale_weight"),
     r"wq\.weight' is f8_e4m3, codes .* without its qscale_weight"),
    (lambda params, tensors: tensors.pop(f"{WQ}.weight"),
     r"wq\.qscale_weight' is the scale of a weight that is not there"),
    (put(f"{WQ}.qscale_weight", lambda a: a.repeat(2)), r"wq\.qscale_weight' is f32\[2\], expected one number"),
    (put(f"{WQ}.qscale_weight", lambda a: a * float("nan")), r"wq\.qscale_weight' a scale is not finite"),
    (put(f"{WQ}.weight", lambda a: torch.full_like(a.float(), float("nan")).to(a.dtype)), r"wq\.weight' a code is NaN"),
    (put(f"{WQ}.weight", lambda a: a.bfloat16()), r"wq\.qscale_weight' scales .*, which is bf16 and not f8_e4m3"),
    (put(f"{WQ}.weight", lambda a: a[:-1]), r"wq\.weight' has shapes \[95, 64\] in 1 files"),
    (lambda params, tensors: tensors.update({f"{WQ}_a.weight": torch.ones(2, 2)}),
     r"wq_a\.weight' is not one of a mistral model"),
    (lambda params, tensors: tensors.update({f"{WQ}.zero": torch.ones(2, 2)}),
     r"wq\.zero' is not one of a mistral model"),
    (say(quantization={"qformat_weight": "int4"}), r"qformat_weight is 'int4', expected 'fp8_e4m3'"),
    (say(quantization={"qformat_weight": "fp8_e4m3", "qscheme_act": "BLOCK"}), r"qscheme_act is 'BLOCK'"),
    (say(quantization=[1]), r"quantization is \[1\], expected an object"),
    (say(q_lora_rank=64), r"key 'q_lora_rank' belongs to a model that is not read here"),
    (say(use_biases=True), r"use_biases is True, expected False"),
    (say(model_type="mamba"), r"model_type is 'mamba', expected transformer"),
    (say(sliding_window=[8, None]), r"sliding_window is \[8, None\], expected a number from 1"),
    (say(hidden_dim=97),
     r"feed_forward\.w1\.weight' has shapes \[96, 64\] in 1 files, which do not make the \[97, 64\]"),
    (say(head_dim=23), r"heads of an even size, not 23"),
    (inside("yarn", apply_scale=True), r"yarn: apply_scale is True, expected false"),
    (inside("yarn", unheard=2), r"yarn: key 'unheard' means something"),
    (inside("llama_4_scaling", original_max_position_embeddings=5),
     r"original_max_position_embeddings is 5, expected that"),
    (say(yarn=None), r"llama_4_scaling is 'there without yarn'"),
    (say(moe={"num_experts": 4, "num_experts_per_tok": 2}), r"w1\.weight' is not one of a mistral model"),
    (say(moe={"num_experts": 4, "num_shared_experts": 2}), r"moe: key 'num_shared_experts' means something"),
    (say(vision_encoder=OWN_VISION | MERGED | {"mm_projector_id": "mlp"}),
     r"mm_projector_id is 'mlp', expected 'patch_merge'"),
    (say(vision_encoder=OWN_VISION | MERGED | {"num_attention_heads": 3}), r"num_attention_heads is 3, expected heads"),
    (say(vision_encoder=OWN_VISION | {"add_pre_mm_projector_layer_norm": True}),
     r"add_pre_mm_projector_layer_norm is True"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message[:30] for _, message in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    params, tensors = PARAMS | MODELS["ministral3"][2] | FP8, fp8(own(made("ministral3")))
    damage(params, tensors)
    folder = makers.write_whole(tmp_path / "bad", tensors, json.loads(json.dumps(params)))
    with pytest.raises(AibitError, match=message) as caught:
        aibit.convert(folder, tmp_path / "m.aibit")
    assert str(folder) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_quantization_that_no_weight_has_is_refused(tmp_path):
    folder = makers.write_whole(tmp_path / "m", own(made("mistral")), PARAMS | FP8)
    with pytest.raises(AibitError, match=r"params\.json: quantization is said, and none of 21 is f8_e4m3"):
        open_source(folder)
