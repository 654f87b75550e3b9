"""AWQ's factors: a search that finds the smallest error of the outputs, the same for any number of threads."""

from dataclasses import replace

import numpy as np
import pytest

from aibit_format.errors import RecipeError
from aibit_format.formats.sources import values
from aibit_format.schemes import parse as scheme_of
from aibit_format.transform.awq import _magnitudes, _Search
from aibit_format.transform.fold import fold, inputs_of, rescaled
from aibit_format.transform.method import Context, parse
from aibit_format.transform.structure import decoder_of
from tests.support import decoders

SCHEME = scheme_of("int4-group,group=32")
(AWQ,) = parse(["awq"])


def quantize(name, array, importance):
    assert importance.shape == (*array.shape[:-2], array.shape[-1]) and np.isfinite(importance).all()
    return SCHEME.decode(SCHEME.encode(array, "f32"), array.shape, "f32") if array.shape[-2] > 4 else None


def error_of(source, found, reader):
    """The error of a reader's outputs over all tokens, from its Hessians or as if columns were uncorrelated."""
    inputs, array = inputs_of(found, reader), values(source, reader)[0].astype(np.float32)
    apart = quantize(reader, array, inputs.importance().reshape(*array.shape[:-2], -1)) - array
    apart = apart.reshape(-1, *apart.shape[-2:])
    if inputs.hessian is None:
        return float((apart**2 * inputs.sum2[:, None]).sum())
    return float(sum(np.einsum("ni,ij,nj", each, h, each) for each, h in zip(apart, inputs.hessian, strict=True)))


def without_hessians(found):
    return replace(found, inputs={name: replace(each, hessian=None) for name, each in found.inputs.items()})


@pytest.mark.parametrize("name", decoders.NAMES)
def test_logits_stay(name):
    source, expected = decoders.source_of(name)
    made, _ = AWQ.apply(source, decoders.statistics(source), Context(quantize))
    assert len(made.metadata["transform.awq.reader"]) == len(made.metadata["transform.awq.exponent"]) > 0
    assert decoders.apart(made, expected) < 2e-5


@pytest.mark.parametrize("hessians", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_the_error_of_what_reads_the_channels_falls(name, hessians):
    source, _ = decoders.source_of(name)
    found = decoders.statistics(source) if hessians else without_hessians(decoders.statistics(source))
    lower = 0
    for channels in decoder_of(source.model).channels:
        search = _Search.of(source, channels, found)
        changes, factors = fold(source, channels, search.factors(search.best(source, quantize)))
        made, after = source.transformed("one", changes), rescaled(found, channels, factors)
        readers = [port.name for port, _ in search.inputs if source.model.parameters[port.name].shape[-2] > 4]
        before, now = (sum(error_of(s, f, r) for r in readers) for s, f in ((source, found), (made, after)))
        assert now <= before * 1.0001
        lower += now < 0.9 * before
    assert lower >= 4


def test_the_formula_and_the_search():
    source, _ = decoders.source_of("llama")
    found = decoders.statistics(source)
    channels = decoder_of(source.model).channels[0]
    search = _Search.of(source, channels, found)
    inputs = found.inputs[channels.name]
    levels = inputs.magnitude[0] / inputs.counts[0]
    assert np.allclose(search.levels, levels)
    factors = levels**0.35
    assert np.allclose(search.factors(0.35), factors / np.sqrt(factors.max() * factors.min()))
    assert np.allclose(search.factors(0.0), 1)
    errors = []
    for exponent in np.arange(20) / 20:
        by = search.factors(exponent)
        arrays = [values(source, port.name)[0] * by for port in channels.readers]
        parts = [(quantize("", a.astype(np.float32), by.astype("f4")) - a) / by for a in arrays]
        hessian = inputs.hessian[0].astype(np.float64)
        hessians = [found.inputs[port.name].hessian[0] for port in channels.readers]
        errors.append(sum(np.einsum("ni,ij,nj", p, h, p) for p, h in zip(parts, hessians, strict=True)))
        assert hessian.shape == (64, 64)
    assert search.best(source, quantize) == np.argmin(errors) / 20 > 0


def test_heads_that_share_values_share_factors():
    source, _ = decoders.source_of("llama")
    found = decoders.statistics(source)
    channels = next(each for each in decoder_of(source.model).channels if each.kind == "values")
    search = _Search.of(source, channels, found)
    columns = _magnitudes(found.inputs[channels.name], 1).reshape(2, 2, 16)
    assert np.allclose(search.levels, columns.mean(1).reshape(-1))


def test_experts_that_no_token_reached_keep_their_weights():
    source, _ = decoders.source_of("mixtral")
    found = decoders.statistics(source)
    name = "model.layers.0.mlp.experts.down_proj"
    inputs = found.inputs[name]
    for array in (inputs.counts, inputs.sum2, inputs.magnitude, inputs.hessian):
        array[2] = 0
    made, _ = AWQ.apply(source, found, Context(quantize))
    before, after = values(source, name)[0], values(made, name)[0]
    # The rows of down are not scaled: nothing reads the residual stream by channel.
    same = [bool(np.allclose(one, other, rtol=1e-6)) for one, other in zip(before, after, strict=True)]
    assert same == [False, False, True, False]


def test_an_imatrix_is_enough_and_threads_make_no_difference():
    source, _ = decoders.source_of("qwen3_moe")
    found = without_hessians(decoders.statistics(source))
    found = replace(found, inputs={
        name: replace(each, magnitude=None, sum=None, largest=None) for name, each in found.inputs.items()
    })  # fmt: skip
    inputs = next(iter(found.inputs.values()))
    assert np.allclose(_magnitudes(inputs, 1), np.sqrt(inputs.sum2[0] / inputs.counts[0]))
    heard = []
    one, other = (
        AWQ.apply(source, found, Context(quantize, jobs, lambda *now: heard.append(now)))[0] for jobs in (1, 3)
    )
    assert all(np.array_equal(one.planes(name)["values"], other.planes(name)["values"]) for name in one.tensors)
    total = len(decoder_of(source.model).channels)
    assert [now[:2] for now in heard] == [(i + 1, total) for i in range(total)] * 2


def test_nothing_to_quantize_is_an_error():
    source, _ = decoders.source_of("llama")
    with pytest.raises(RecipeError, match="awq: no weight is to be quantized whose columns can be scaled"):
        AWQ.apply(source, decoders.statistics(source), Context(lambda *_: None))
