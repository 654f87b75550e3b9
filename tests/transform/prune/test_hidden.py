"""Channels of the residual stream: which axes they are, what is left without them, how they are scored."""

import pathlib

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.errors import RecipeError
from aibit_format.formats.in_memory import Pretrained
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source
from aibit_format.transform.changes import Scale
from aibit_format.transform.families import FAMILIES
from aibit_format.transform.prune.choose import Choice
from aibit_format.transform.prune.hidden import factors, hidden_axes, scored
from aibit_format.transform.prune.plan import Plan, Wanted
from aibit_format.transform.prune.source import Pruned
from aibit_format.transform.source import Transformed
from tests.support import architectures, decoders

ROOT = pathlib.Path(__file__).resolve().parents[3]
CLOSE = 2e-6  # norms compute in float32
FOLLOWS = {"gemma", "gemma2", "gemma3_text", "vaultgemma"}  # embeddings are multiplied by the root of the hidden size
OF_HEADS = {"helium", "olmoe", "stablelm"}  # the size of a head follows from the hidden size


def kept_of(size):
    return np.sort(np.random.default_rng(3).permutation(size)[: size // 2])


@pytest.mark.parametrize("name", decoders.NAMES)
def test_channels_that_are_dropped_are_as_if_nothing_wrote_them(name):
    source, expected = decoders.source_of(name, rms_norm_eps=1e-12)  # which is added to a mean of more, or of fewer
    model = source.model
    size = model.module.config.get_text_config().hidden_size
    kept = kept_of(size)
    if name in FOLLOWS | OF_HEADS:
        with pytest.raises(RecipeError, match=r"hidden size of \w+ cannot be cut"):
            Pruned(source, Plan(hidden=kept))
        return
    axes = hidden_axes(source, len(kept))
    mask = np.zeros(size)
    mask[kept] = 1
    embedding = "model.embed_tokens.weight"
    silent = {embedding: [Scale(-1, mask)]}
    norms = []
    for each, axis in axes.items():
        shape = model.parameters[each].shape
        if each.endswith(".bias") or (axis == 1 and len(shape) > 1):  # writes to the stream
            silent[each] = [Scale(-2, mask)]
        elif len(shape) == 1:
            norms.append(each)
    gain = float(np.sqrt(size / len(kept)))  # a mean over fewer, of the same sum
    made = Pruned(source, Plan(hidden=kept, gains=dict.fromkeys(norms, gain)))
    assert made.model.module.config.get_text_config().hidden_size == len(kept)
    if FAMILIES[name].centred:
        return  # a mean that is subtracted is another one over fewer
    without = source.transformed("silent", silent)
    assert decoders.apart(made, decoders.logits(decoders.rebuilt(without))) < CLOSE < decoders.apart(made, expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hidden")
    architectures.save("llama-tied", path / "hf")
    return path / "hf"


def choice_of(folder, statistics=None):
    source = open_source(folder)
    return Choice(Transformed(source, meta_model_of(source)), statistics)


def test_what_contributes_nothing_goes_first(folder):
    base = choice_of(folder).source
    size = 64
    mask = np.ones(size)
    mask[[3, 5, 9, 60]] = 0
    silent = {"model.embed_tokens.weight": [Scale(-1, mask)]}
    for each, axis in hidden_axes(base, 32).items():
        if axis == 1 and len(base.model.parameters[each].shape) > 1:
            silent[each] = [Scale(-2, mask)]
    found = Choice(base.transformed("silent", silent)).plan(Wanted(hidden=60))
    assert sorted(set(range(size)) - set(found.hidden.tolist())) == [3, 5, 9, 60] and not found.gains


def test_statistics_say_how_large_they_are_and_what_norms_lose(tmp_path):
    (tmp_path / "text").write_text("If the file is damaged, the reader refuses it and says where. " * 40)
    trained = ROOT / "fixtures" / "models" / "tiny-llama"
    statistics = calibrate(trained, [tmp_path / "text"], samples=4, length=32)
    choice = choice_of(trained, statistics)
    size = choice.source.model.module.config.hidden_size
    found = choice.plan(Wanted(hidden=size // 2))
    norms = {name for name in choice.source.model.parameters if name.endswith("layernorm.weight")}
    assert norms <= set(found.gains) and all(0.9 < gain < 1.42 for gain in found.gains.values())
    assert len(found.hidden) == size // 2 and (np.diff(found.hidden) > 0).all()
    axes = hidden_axes(choice.source, size // 2)
    scores, seen = scored(choice.source.model, axes, statistics, choice._values)
    readers = [name for name, axis in axes.items() if axis == 2 and name != "model.embed_tokens.weight"]
    assert np.isclose(scores.sum(), len(readers))  # a share of each
    assert factors(seen, np.arange(size)) == pytest.approx(dict.fromkeys(seen, 1.0))


@pytest.mark.parametrize(("wanted", "message"), [
    ("hidden=65", "65 hidden to keep, and there are 64"),
    ("hidden=31,block=2", "31 of 64 hidden to keep, in blocks of 2"),
    ("hidden=48,uneven", "only channels can be uneven"),
])  # fmt: skip
def test_what_cannot_be(folder, tmp_path, wanted, message):
    with pytest.raises(RecipeError, match=message):
        aibit.prune(folder, tmp_path / "m.aibit", wanted)
    assert not (tmp_path / "m.aibit").exists()


@pytest.mark.parametrize(("scheme", "decoded"), [("int8", False), ("int4-group,group=32", False), ("nf4", True)])
def test_a_quantized_file_keeps_codes_of_whole_blocks(folder, tmp_path, scheme, decoded):
    aibit.convert(folder, tmp_path / "m.aibit", scheme)
    made = aibit.prune(tmp_path / "m.aibit", tmp_path / "n.aibit", "hidden=32,block=32")
    assert any("decoded and rounded again" in note for note in made.notes) is decoded
    model = aibit.load_model(made.path)
    assert model.config.hidden_size == 32 and model.config.head_dim == 16
    assert architectures.output(model, "llama-tied").isfinite().all()


def test_it_goes_together_with_layers_and_channels_and_for_a_size(folder, tmp_path):
    made = aibit.prune(folder, tmp_path / "m.aibit", "layers=1,channels=64,heads=2,hidden=32", scheme="int8")
    assert aibit.load_model(made.path).model.layers[0].mlp.down_proj.weight.shape == (32, 64)
    smaller = aibit.prune(folder, tmp_path / "n.aibit", f"size={made.file_bytes + 40_000},by=hidden", scheme="int8")
    assert smaller.file_bytes <= made.file_bytes + 40_000 and smaller.pruned[0].startswith("hidden=")


def test_a_model_in_memory(folder):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    source = Pretrained(model)
    made = Choice(Transformed(source, meta_model_of(source))).plan(Wanted(hidden=16))
    assert len(made.hidden) == 16
