"""transformers' own calls take a file, after one line; any other path goes where it went before."""

from __future__ import annotations

import inspect
import threading

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import aibit_format as aibit
from aibit_format.errors import LoadError
from tests.support import architectures

FIXTURE = "fixtures/models/tiny-llama"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("transformers") / "m.aibit"
    aibit.convert(FIXTURE, made)
    return made


@pytest.fixture(autouse=True)
def registered():
    aibit.register()
    yield
    aibit.unregister()


def same(a, b):
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.inference_mode():
        return torch.equal(a(ids)[0], b(ids)[0])


def test_models(path):
    wanted = aibit.load_model(path)
    for cls in (AutoModelForCausalLM, transformers.LlamaForCausalLM):
        found = cls.from_pretrained(path)
        assert type(found) is type(wanted) and same(found, wanted) and not found.training
    body = AutoModel.from_pretrained(str(path))
    assert type(body) is transformers.LlamaModel and same(body, wanted.model)
    found, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert same(found, wanted) and info["missing_keys"] == []


def test_options(path):
    found = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"}, trust_remote_code=False,
        low_cpu_mem_usage=True, weight_only=True,
    )  # fmt: skip
    assert found.dtype == torch.float32 and found.config._attn_implementation == "eager"
    assert AutoModelForCausalLM.from_pretrained(path, torch_dtype="float32", device_map="cpu").dtype == torch.float32
    for options, message in (
        ({"quantization_config": {}}, "quantization_config: not an argument for an .aibit file"),
        ({"load_in_4bit": True}, "load_in_4bit"), ({"max_memory": {0: "1GB"}}, "max_memory: a file is loaded on one"),
    ):  # fmt: skip
        with pytest.raises(LoadError, match=message):
            AutoModelForCausalLM.from_pretrained(path, **options)


def test_another_class_is_refused(path):
    with pytest.raises(LoadError, match=r"holds LlamaForCausalLM, and .* wants LlamaForSequenceClassification"):
        transformers.AutoModelForSequenceClassification.from_pretrained(path)
    with pytest.raises(LoadError, match="holds LlamaForCausalLM, and GPT2LMHeadModel wants GPT2LMHeadModel"):
        transformers.GPT2LMHeadModel.from_pretrained(path)


def test_tokenizer_config_and_defaults(path):
    tokenizer, wanted = AutoTokenizer.from_pretrained(path), AutoTokenizer.from_pretrained(FIXTURE)
    assert tokenizer("If the file")["input_ids"] == wanted("If the file")["input_ids"]
    assert AutoTokenizer.from_pretrained(path, padding_side="left").padding_side == "left"
    config = AutoConfig.from_pretrained(path)
    assert type(config) is transformers.LlamaConfig and config.architectures == ["LlamaForCausalLM"]
    assert config.name_or_path == str(path) and AutoConfig.from_pretrained(path, use_cache=False).use_cache is False
    config, rest = AutoConfig.from_pretrained(path, return_unused_kwargs=True, nothing=1)
    assert rest == {"nothing": 1}
    assert GenerationConfig.from_pretrained(path, max_new_tokens=3).max_new_tokens == 3


def test_a_pipeline(path):
    made = transformers.pipeline("text-generation", model=str(path))
    again = transformers.pipeline("text-generation", model=aibit.load_model(path), tokenizer=made.tokenizer)
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    assert made("If the file", **options) == again("If the file", **options)


def test_other_paths_go_where_they_went(path, tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "hf")) is transformers.LlamaForCausalLM
    assert AutoConfig.from_pretrained(str(tmp_path / "hf")).model_type == "llama"
    with pytest.raises(OSError, match="nothing"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "nothing")
    (tmp_path / "renamed.bin").write_bytes(path.read_bytes())
    assert AutoConfig.from_pretrained(tmp_path / "renamed.bin").model_type == "llama"
    with pytest.raises(aibit.FormatError, match="cannot be opened"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "missing.aibit")


def test_it_is_taken_back(path):
    aibit.register()  # again
    during = inspect.getattr_static(AutoTokenizer, "from_pretrained")
    aibit.unregister()
    assert inspect.getattr_static(AutoTokenizer, "from_pretrained") is not during
    with pytest.raises(Exception, match=r"(?i)json|utf-8|valid"):
        AutoConfig.from_pretrained(path)
    assert "aibit" not in transformers.PreTrainedModel.from_pretrained.__code__.co_filename


def test_threads_load_side_by_side(path):
    wanted, found = aibit.load_model(path), []

    def load():
        found.append(AutoModelForCausalLM.from_pretrained(path))

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(same(each, wanted) for each in found)
