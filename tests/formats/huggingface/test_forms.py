"""Forms of quantized directories: which is written, what transformers and the sources here read, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

import aibit_format as aibit
from aibit_format.errors import WriteError
from aibit_format.formats.huggingface import origin
from aibit_format.formats.huggingface.export import stored_tensor
from aibit_format.formats.huggingface.forms import FORMS, NotHeldError, form_class
from aibit_format.schemes import parse
from tests.support import architectures
from tests.support import block_checkpoints as checkpoints
from tests.support.exported_models import small
from tests.support.recorded import Random

# Scheme -> the form that it goes out in, and its format if there are several.
FORM_OF = {
    "fp8-block,rows=32,columns=32": ("fp8", None),
    "fp8-block,rows=all,columns=all": ("fp8", None),
    "fp8-block,rows=32,columns=64,scale=f8_e8m0": ("fp8", None),
    "fp8-block,rows=1,columns=all,scale=bf16": ("compressed-tensors", "float-quantized"),
    "fp8-e4m3": ("compressed-tensors", "float-quantized"),
    "int8-absmax": ("compressed-tensors", "int-quantized"),
    "int-group,bits=8,group=row,zero=code": ("compressed-tensors", "int-quantized"),
    "int-group,bits=3,group=32,scale=f32": ("compressed-tensors", "pack-quantized"),
    "int4-group,group=32": ("compressed-tensors", "pack-quantized"),
    "int4-group,group=32,symmetric=1": ("compressed-tensors", "pack-quantized"),
    "nvfp4,reciprocal=1": ("compressed-tensors", "nvfp4-pack-quantized"),
    "mxfp4": ("compressed-tensors", "mxfp4-pack-quantized"),
    "mxfp8": ("compressed-tensors", "mxfp8-quantized"),
    "int-group,bits=6,group=64,zero=bias": ("mlx", None),
    "ternary": ("bitnet", None),
    "nvfp4": ("modelopt", None),
}
MISSING = "compressed-tensors is not installed (pip install --no-deps compressed-tensors loguru; pip install pydantic)"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Directories of models by name and dtype, made when asked for."""
    made = {}

    def folder(name, dtype=torch.float32):
        if (name, dtype) not in made:
            made[name, dtype] = tmp_path_factory.mktemp(name)
            architectures.save(name, made[name, dtype], dtype)
        return made[name, dtype]

    return folder


def said(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def exported(source, folder, scheme, tensors=(), **options):
    """The directory written from a file with these schemes, beside the file."""
    aibit.convert(source, folder / "m.aibit", scheme, tensors)
    aibit.export(folder / "m.aibit", "huggingface", folder / "out", **options)
    return folder / "out"


def check_values(folder):
    """The source of the directory gives the values of the file."""
    aibit.convert(folder / "out", folder / "again.aibit")
    with aibit.open(folder / "m.aibit") as file, aibit.open(folder / "again.aibit", verify="full") as again:
        assert list(file) == list(again)
        for name in file:
            assert np.array_equal(file.dequantize(name), again.dequantize(name)), name


def same_values(model, path):
    """Whether a model that decodes what it loads has the values of the file, in its dtype."""
    with aibit.open(path) as file:
        for name, found in model.state_dict().items():
            assert torch.equal(found, torch.from_numpy(file.dequantize(name)).to(found.dtype)), name


def loaded(name, folder, **arguments):
    """The model that transformers loads, to the last tensor."""
    family, _ = architectures.MODELS[name]
    model, info = family.from_pretrained(folder, device_map="cpu", output_loading_info=True, **arguments)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("scheme", FORM_OF)
def test_a_file_goes_out_in_the_form_that_holds_it(scheme, plain, tmp_path):
    out = exported(plain("llama-untied"), tmp_path, scheme)
    method, format = FORM_OF[scheme]
    assert said(out).get("quant_method", "mlx") == method and said(out).get("format") == format
    check_values(tmp_path)


@pytest.mark.parametrize("scheme", [scheme for scheme, (method, _) in FORM_OF.items() if method == "fp8"][:2])
def test_transformers_loads_fp8(scheme, plain, tmp_path):
    out = exported(plain("llama-untied"), tmp_path, scheme)
    model = loaded("llama-untied", out, quantization_config=tf.FineGrainedFP8Config(dequantize=True))
    same_values(model, tmp_path / "m.aibit")
    expected = architectures.output(aibit.load_model(tmp_path / "m.aibit"), "llama-untied")
    assert architectures.close(architectures.output(model, "llama-untied"), expected)


@pytest.mark.parametrize("scheme", [scheme for scheme, (method, _) in FORM_OF.items() if method.startswith("comp")])
def test_transformers_loads_compressed_tensors(scheme, plain, tmp_path):
    pytest.importorskip("compressed_tensors", reason=MISSING)
    # The library computes in the dtype of the scales, or bfloat16; a model of another dtype rounds once more.
    half = "int4" in scheme or "zero=code" in scheme
    dtype = torch.float16 if half else torch.bfloat16 if "bf16" in scheme or "fp4" in scheme else torch.float32
    out = exported(plain("llama-untied", dtype), tmp_path, scheme)
    model = loaded("llama-untied", out, quantization_config=tf.CompressedTensorsConfig(dequantize=True))
    same_values(model, tmp_path / "m.aibit")
    expected = architectures.output(aibit.load_model(tmp_path / "m.aibit"), "llama-untied")
    assert architectures.close(architectures.output(model, "llama-untied"), expected)


def test_transformers_loads_gemmas_integers_as_if_nothing_said_how_inputs_are_quantized(plain, tmp_path):
    out = exported(plain("llama-untied"), tmp_path, "int-group,bits=8,group=row,scale=f32", type="gemma")
    model = loaded("llama-untied", out)
    with aibit.open(tmp_path / "m.aibit") as file:
        layer = model.model.layers[1].mlp.up_proj
        expected = file.dequantize("model.layers.1.mlp.up_proj.weight")
        assert np.array_equal(layer._dequantize_weights().detach(), expected)
    expected = architectures.output(aibit.load_model(tmp_path / "m.aibit"), "llama-untied")
    assert architectures.close(architectures.output(model, "llama-untied"), expected)
    check_values(tmp_path)


FP8 = "fp8-block,rows=32,columns=32"


def test_experts_are_written_one_by_one(plain, tmp_path):
    """transformers would load fused ones without their scales."""
    out = exported(plain("mixtral"), tmp_path, FP8, {"experts": FP8})
    names = load_file(out / "model.safetensors")
    assert names["model.layers.1.mlp.experts.3.w2.weight_scale_inv"].shape == (2, 4)
    gates = [f"model.layers.{layer}.mlp.gate" for layer in range(2)]
    assert said(out)["modules_to_not_convert"] == ["lm_head", *gates]
    model = loaded("mixtral", out, quantization_config=tf.FineGrainedFP8Config(dequantize=True))
    expected = architectures.output(aibit.load_model(tmp_path / "m.aibit"), "mixtral")
    found = architectures.output(model, "mixtral")
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()  # experts are multiplied as they are stored
    check_values(tmp_path)


def test_experts_of_which_some_weights_are_not_held_are_named(plain, tmp_path):
    rules = {"experts": FP8, r"1\.mlp\.experts\.down": "bf16"}
    with pytest.raises(WriteError, match=r"1\.mlp\.experts\.gate_up_proj' .*the other weights of the same experts"):
        exported(plain("mixtral"), tmp_path, FP8, rules)
    aibit.export(tmp_path / "m.aibit", "huggingface", tmp_path / "out", dequantize=True)
    assert said(tmp_path / "out")["modules_to_not_convert"][-1] == "model.layers.1.mlp.experts"
    loaded("mixtral", tmp_path / "out", quantization_config=tf.FineGrainedFP8Config(dequantize=True))


def test_joined_experts_of_a_checkpoint_go_back_as_they_came(tmp_path):
    """Of a checkpoint whose names are those of the model, but for the experts."""
    config = tf.Qwen3MoeConfig(
        vocab_size=160, hidden_size=64, intermediate_size=128, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    tf.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    stored, random = {}, Random(1)
    for name, value in load_file(tmp_path / "plain/model.safetensors").items():
        stored[name] = value
        if checkpoints.is_layer(name) and not name.endswith("mlp.gate.weight"):
            rows, columns = value.shape
            stored[name] = random.e4m3(rows, columns)
            stored[f"{name}_scale_inv"] = random.scales(rows // 32, columns // 32)
    quantization = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic",
                    "modules_to_not_convert": ["lm_head", "mlp.gate"]}  # fmt: skip
    checkpoints.write(tmp_path / "hf", stored, json.loads((tmp_path / "plain/config.json").read_text()),
                      quantization_config=quantization)  # fmt: skip
    exported(tmp_path / "hf", tmp_path, None)
    checkpoints.same(tmp_path / "hf", tmp_path / "out")
    assert said(tmp_path / "out") == quantization


@pytest.mark.parametrize("form", ["gptq", "awq"])
@pytest.mark.parametrize("scheme", ["int4-group,group=32", "int4-group,group=row,symmetric=1"])
def test_another_form_is_written_if_asked_for(form, scheme, plain, tmp_path):
    out = exported(plain("llama-untied"), tmp_path, scheme, type=form)
    assert said(out)["quant_method"] == form
    assert said(out).get("checkpoint_format") == {"awq": None, "gptq": "gptq"}[form]
    check_values(tmp_path)


def test_conv1d_weights_go_out_as_gptq_and_in_no_form_of_linears_alone(plain, tmp_path):
    exported(plain("gpt2"), tmp_path, "int4-group,group=32", {"wte|wpe": "f16"})
    assert said(tmp_path / "out")["quant_method"] == "gptq"
    check_values(tmp_path)
    with pytest.raises(WriteError, match=r"c_attn\.weight' .*puts no layer of awq there.*--dequantize"):
        aibit.export(tmp_path / "m.aibit", "huggingface", tmp_path / "awq", type="awq")
    assert not (tmp_path / "awq").exists()


REFUSED = [
    ("llama-tied", FP8, {"embed_tokens": FP8}, {}, r"'model\.embed_tokens\.weight' .*no layer of fp8 there.*is tied"),
    ("llama-untied", FP8, {"0.*up_proj": "fp8-block,rows=16,columns=32"}, {"type": "fp8"},
     r"'model\.layers\.0\.mlp\.up_proj\.weight' .*most of the model goes into fp8: blocks of 32 by 32"),
    ("llama-untied", FP8, {"up_proj": "nf4"}, {}, r"up_proj\.weight' .*stored as nf4.*codes f8_e4m3"),
    ("llama-untied", "gguf:q8_0", {}, {}, r"is stored as gguf:q8_0, and no form .*--dequantize.*--to gguf"),
    ("llama-untied", "cluster", {}, {}, r"is stored as cluster, and no form of checkpoint that is written here"),
    ("llama-untied", "int4-group,group=32", {}, {"type": "mxfp4"}, r"experts in whole blocks of 32 columns alone"),
    ("llama-untied", "int4-group,group=32", {}, {"type": "exl2"}, r"type 'exl2' .*known: bitsandbytes, fp8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "scheme", "rules", "options", "message"), REFUSED, ids=[r[4][:40] for r in REFUSED])
def test_what_no_form_holds_is_named_with_what_to_do(name, scheme, rules, options, message, plain, tmp_path):
    with pytest.raises(WriteError, match=message):
        exported(plain(name), tmp_path, scheme, rules, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["m.aibit"]


def test_widths_that_differ_are_groups_of_compressed_tensors_and_paths_of_mlx(plain, tmp_path):
    rules = {"1.*up_proj": "int-group,bits=8,group=64", "q_proj": "fp8-block,rows=1,columns=all"}
    out = exported(plain("llama-untied"), tmp_path, "int-group,group=32", rules)
    groups = said(out)["config_groups"]
    assert said(out)["format"] == "mixed-precision" and groups["group_0"]["targets"] == ["Linear"]
    assert groups["group_2"]["targets"] == ["model.layers.1.mlp.up_proj"]
    check_values(tmp_path)
    (tmp_path / "m").mkdir()
    rules = {"1.*up_proj": "int-group,bits=8,group=64,zero=bias", "embed": "int-group,group=64,zero=bias"}
    out = exported(plain("llama-tied"), tmp_path / "m", "int-group,group=32,zero=bias", rules)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert config["quantization"]["model.layers.1.mlp.up_proj"]["bits"] == 8
    check_values(tmp_path / "m")


# What a file says of the checkpoint it came from.


def with_said(folder, text, parts=None):
    metadata = {origin.SAID: text} | ({} if parts is None else {origin.PARTS: parts})
    aibit.edit(folder / "m.aibit", folder / "n.aibit", metadata=metadata, overwrite=True)
    aibit.export(folder / "n.aibit", "huggingface", folder / "out", overwrite=True)
    return said(folder / "out")


@pytest.mark.parametrize("text", [
    "{", "[]", "null", "7", '{"quant_method": "compressed-tensors", "config_groups": {"a": 4}, "ignore": ["re:(("]}',
    '{"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8}}}}',  # noqa: E501
    '{"quant_method": "compressed-tensors", "config_groups": [], "ignore": 3}',
    '{"quant_method": "gptq", "bits": "x", "desc_act": [], "checkpoint_format": 7, "group_size": {}}',
    '{"quant_method": "mlx", "bits": [], "group_size": null}', '{"quant_method": "gemma", "module_quant_configs": 4}',
    '{"quant_method": "fp8", "weight_block_size": 3}', '{"quant_method": ["x"]}',
])  # fmt: skip
def test_what_a_file_says_of_its_source_can_be_wrong(text, plain, tmp_path):
    aibit.convert(plain("llama-untied"), tmp_path / "m.aibit", "int4-group,group=32")
    with_said(tmp_path, text, ["nonsense", ".weight_scale i8 9", ".scales f64 0", ""])
    check_values(tmp_path)


def test_keys_that_run_code_do_not_come_through(plain, tmp_path):
    aibit.convert(plain("llama-untied"), tmp_path / "m.aibit", "int4-group,group=32")
    text = '{"quant_method": "gptq", "auto_map": {"x": "y"}, "meta": {"trust_remote_code": true, "a": 1}}'
    found = with_said(tmp_path, text)
    assert found["meta"] == {"a": 1} and "auto_map" not in found


def test_scales_of_inputs_that_are_left_out_are_not_promised(tmp_path):
    def parts(name, weight):
        made = {"weight": weight.to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(()),
                "activation_scale": torch.ones(())}  # fmt: skip
        return made, made["weight"].float()

    source = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"}
    folder, values = checkpoints.model(tmp_path, source, parts)
    checkpoints.check_model(folder, values)
    assert said(tmp_path / "back")["activation_scheme"] == "dynamic"
    aibit.convert(tmp_path / "m.aibit", tmp_path / "n.aibit")
    with aibit.open(tmp_path / "m.aibit") as first, aibit.open(tmp_path / "n.aibit") as second:
        for key in (origin.SAID, origin.PARTS, origin.LEFT_OUT):
            assert first.metadata[key] == second.metadata[key]


def test_zero_points_decide_on_the_format_of_gptq_or_are_an_error(plain, tmp_path):
    """Groups without a negative value have the zero point 0, which only the second format holds."""
    tensors = load_file(plain("llama-untied") / "model.safetensors")
    tensors = {name: value.abs() if "up_proj" in name else value for name, value in tensors.items()}
    config = json.loads((plain("llama-untied") / "config.json").read_text())
    checkpoints.write(tmp_path / "hf", tensors, config)
    out = exported(tmp_path / "hf", tmp_path, "int4-group,group=32", type="gptq")
    assert said(out)["checkpoint_format"] == "gptq_v2"
    check_values(tmp_path)
    with pytest.raises(WriteError, match=r"up_proj.* has zero points 0 to \d+, and gptq with 4 bits holds 1 to 16"):
        with_said(tmp_path, '{"quant_method": "gptq", "checkpoint_format": "gptq"}')
    assert said(out)["checkpoint_format"] == "gptq_v2"


def test_every_form_is_of_a_method_that_a_source_reads():
    from aibit_format.formats.huggingface.methods import METHODS

    methods = [method for name in FORMS for method in form_class(name).METHODS]
    assert len(set(methods)) == len(methods) and set(methods) <= METHODS.keys()
    assert METHODS.keys() - set(methods) == {None, "torchao", "hqq"}
    assert [form_class(name).name for name in FORMS] == list(FORMS)


def test_blocks_at_the_ends_that_transformers_would_take_for_others_go_out_as_compressed_tensors(plain, tmp_path):
    """It divides 64 rows evenly by the two scales of blocks of 48."""
    out = exported(plain("llama-untied"), tmp_path, "fp8-block,rows=48,columns=32")
    group = said(out)["config_groups"]["group_0"]["weights"]
    assert group["strategy"] == "block" and group["block_structure"] == [48, 32]
    check_values(tmp_path)


def test_layers_of_gptq_that_are_not_quantized_are_said(plain, tmp_path):
    rules = {"0.*q_proj": "f32", "lm_head": "int4-group,group=32"}
    out = exported(plain("llama-untied"), tmp_path, "int4-group,group=32", rules, type="gptq")
    assert said(out)["dynamic"] == {r"-:^model\.layers\.0\.self_attn\.q_proj$": {}} and said(out)["lm_head"] is True
    check_values(tmp_path)


def test_an_embedding_is_named_in_the_group_of_linears(plain, tmp_path):
    scheme = "int-group,group=32"
    out = exported(plain("llama-untied"), tmp_path, scheme, {"embed_tokens": scheme})
    assert said(out)["config_groups"]["group_0"]["targets"] == ["Linear", "model.embed_tokens"]
    check_values(tmp_path)


SETTINGS = {
    "fp8": ("fp8-block,rows=32,columns=32", ["weight_block_size", "scale_fmt", "activation_scheme", "expert_dtype",
                                             "modules_to_not_convert", "ignored_layers"]),
    "compressed-tensors": ("int-group,group=32", ["config_groups", "format", "ignore", "kv_cache_scheme"]),
    "gptq": ("int4-group,group=32", ["bits", "group_size", "sym", "desc_act", "checkpoint_format", "format", "meta",
                                     "dynamic", "packing_format", "backend"]),
    "awq": ("int4-group,group=32", ["bits", "group_size", "version", "zero_point", "modules_to_not_convert", "sym"]),
    "mlx": ("int-group,group=32,zero=bias", ["bits", "group_size", "mode", "m.q", "modules_to_not_convert"]),
    "bitnet": ("ternary", ["linear_class", "quantization_mode", "modules_to_not_convert"]),
    "modelopt": ("nvfp4", ["quant_algo", "ignore", "exclude_modules", "config_groups"]),
    "gemma": ("int-group,bits=8,group=row", ["num_bits", "module_quant_configs", "modules_to_not_convert"]),
}  # fmt: skip
VALUES = [None, True, -3, 1e300, "x", "re:((", [], ["(", 3, None], [1, "a"], {}, {"m.q": 1, "(": {}, "a": {"b": []}}]


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_a_source_can_break_an_export(name, tmp_path):
    scheme, keys = SETTINGS[name]
    values, stored_in = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32), parse(scheme)
    with small(tmp_path / "m.aibit", {"m.q.weight": (values, stored_in)}) as file:
        stored = stored_tensor(file, file.info("m.q.weight"))
        for key in keys:
            for value in VALUES:
                text = json.dumps({"quant_method": name, key: value})
                form = form_class(name)(file)
                parts = [".weight_scale f32 0", ".scales f32 2"]
                form.origin = origin.origin_of({origin.SAID: text, origin.PARTS: parts})
                form.said = form.origin.said
                try:
                    form.settings(stored)
                except NotHeldError:
                    continue
                assert json.dumps(form.with_config({}, form.config([stored], ["m.r"])))
                assert len(form.item(stored).make()) == len(form.item(stored).entries)


def test_what_mlx_said_does_not_stay_in_a_config_of_another_form(plain, tmp_path):
    tensors, config = load_file(plain("llama-untied") / "model.safetensors"), plain("llama-untied") / "config.json"
    random, said_there = Random(1), {"bits": 4, "group_size": 32}
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight"] = random.words(128, 8).view(torch.uint32)
    tensors |= {f"{name}.{end}": random.scales(128, 2) for end in ("scales", "biases")}
    checkpoints.write(tmp_path / "hf", tensors, json.loads(config.read_text()), quantization=said_there)
    out = exported(tmp_path / "hf", tmp_path, "int4-group,group=32")
    assert said(out)["quant_method"] == "compressed-tensors"
    assert "quantization" not in json.loads((out / "config.json").read_text())
    check_values(tmp_path)
