"""Write directories with quantized weights in the place of a model's, or of one module."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import aibit_format as aibit
from aibit_format.errors import AibitError
from aibit_format.formats.huggingface.export import stored_tensor as stored
from aibit_format.formats.huggingface.forms import FORMS, form_class
from aibit_format.formats.safetensors.writer import write_directory
from aibit_format.formats.source import Source
from aibit_format.formats.sources import open_source
from aibit_format.schemes import parse as parse
from tests.support import architectures

Tensors = dict[str, torch.Tensor]
NAME = "llama-untied"


def is_layer(name: str) -> bool:
    """Whether a tensor of the Llama is the weight of a layer that is usually quantized."""
    return ".layers." in name and "norm" not in name and name.endswith(".weight")


def write(folder: pathlib.Path, tensors: Tensors, config: Mapping, **more: object) -> pathlib.Path:
    """Write a directory."""
    folder.mkdir(exist_ok=True, parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    return folder


def model(
    folder: pathlib.Path,
    said: Mapping,
    parts: Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]],
    dtype: torch.dtype = torch.bfloat16,
    name: str = NAME,
    key: str = "quantization_config",
) -> tuple[pathlib.Path, Tensors]:
    """Write a small model whose layers are quantized; returns its directory, and the values of all its tensors.

    ``parts`` makes the tensors of a weight, by the ends of their names behind the module's, and its values.
    """
    architectures.save(name, folder / "plain", dtype)
    tensors = load_file(folder / "plain/model.safetensors")
    config = json.loads((folder / "plain/config.json").read_text())
    stored, values = {}, dict(tensors)
    for each, tensor in tensors.items():
        if is_layer(each):
            made, decoded = parts(each, tensor)
            stored |= {each.removesuffix("weight") + end: part for end, part in made.items()}
            values[each] = decoded.to(dtype)
        else:
            stored[each] = tensor
    return write(folder / "hf", stored, config, **{key: said}), values


def check_model(
    folder: pathlib.Path, values: Tensors, scheme: str | None = None, name: str = NAME, goes_back: bool = True,
    left_out: tuple[str, ...] = ("activation_scale", "input_scale"), turned: bool = False,
):
    """Convert; values and logits are those of the decoded model, and quantized weights are kept as they are.

    An export writes the very tensors of the directory again. ``turned`` says that quantized weights are stored as
    their transposes.

    Returns the report.
    """
    report = aibit.convert(folder, folder.parent / "m.aibit")
    layers = [tensor for tensor in report.tensors if is_layer(tensor.name)]
    assert layers and all(tensor.kept for tensor in layers)
    if scheme is not None:
        assert {tensor.scheme for tensor in layers} == {scheme}
    assert not report.unused
    with aibit.open(folder.parent / "m.aibit", verify="full") as file:
        for key, value in values.items():
            found = torch.from_numpy(file.dequantize(key)).to(value.dtype)
            assert torch.equal(found.T if turned and is_layer(key) else found, value), key
    family, make_config = architectures.MODELS[name]
    config = make_config()
    config.dtype = next(iter(values.values())).dtype
    plain = family.from_pretrained(None, config=config, state_dict=values).eval()
    loaded = aibit.load_model(folder.parent / "m.aibit")
    assert isinstance(plain, transformers.PreTrainedModel)
    expected, found = architectures.output(plain, name), architectures.output(loaded, name)
    assert architectures.close(found, expected)
    if goes_back:
        aibit.export(folder.parent / "m.aibit", "huggingface", folder.parent / "back")
        same(folder, folder.parent / "back", left_out)
        aibit.convert(folder.parent / "back", folder.parent / "again.aibit")
        with aibit.open(folder.parent / "m.aibit") as file, aibit.open(folder.parent / "again.aibit") as again:
            assert list(again) == list(file)
            for key in file:
                assert again.info(key).scheme == file.info(key).scheme
                for role, plane in file.planes(key).items():
                    assert plane.tobytes() == again.planes(key)[role].tobytes(), (key, role)
    return report


def one(folder: pathlib.Path, said: Mapping, parts: Tensors, key: str = "quantization_config") -> Source:
    """A source of one quantized module ``m.q``, and a plain tensor beside it."""
    tensors = {"m.b": torch.ones(3)} | {f"m.q.{end}": part for end, part in parts.items()}
    write(folder, tensors, {"dtype": "bfloat16", key: said})
    return open_source(folder)


def decoded(source: Source, name: str = "m.q.weight") -> torch.Tensor:
    """The values of a weight, f32, from planes that are of the shapes and values that its scheme has."""
    tensor, planes = source.tensors[name], source.planes(name)
    specs = tensor.stored.planes(tensor.shape, tensor.dtype)
    assert {spec.role: (spec.stored, planes[spec.role].dtype.itemsize) for spec in specs} == {
        role: (plane.shape, plane.dtype.itemsize) for role, plane in planes.items()
    }
    assert not list(tensor.stored.bad_values(planes)) and not list(tensor.stored.bad_codes(planes, tensor.shape))
    return torch.from_numpy(tensor.stored.decode(planes, tensor.shape, tensor.dtype))


def same(folder: pathlib.Path, back: pathlib.Path, left_out: tuple[str, ...] = ()) -> None:
    """Two directories have the same tensors, to the bit."""
    before, after = ({} for _ in range(2))
    for found, path in ((before, folder), (after, back)):
        for file in path.glob("*.safetensors"):
            found |= load_file(file)
    after = {name: value for name, value in after.items() if not name.endswith(left_out or ("nothing",))}
    assert after.keys() == {name for name in before if not name.endswith(left_out or ("nothing",))}
    for name, value in after.items():
        assert value.dtype == before[name].dtype and value.shape == before[name].shape, name
        assert value.reshape(-1).view(torch.uint8).equal(before[name].reshape(-1).view(torch.uint8)), name


def goes_back(folder: pathlib.Path, left_out: tuple[str, ...] = ()) -> pathlib.Path:
    """Convert the tensors of a directory, and write them in its form: they are what they were, to the bit.

    Returns the directory written, from which the source's values are read again.
    """
    source = open_source(folder)
    source.no_model = "these are tensors alone"
    aibit.convert(source, folder.parent / "tensors.aibit", overwrite=True)
    with aibit.open(folder.parent / "tensors.aibit") as file:
        form = next(found for name in FORMS if source.kind in (found := form_class(name)).METHODS)(file)
        kept = [stored(file, file.info(name)) for name in file if file.info(name).scheme.lossy]
        plain = [name for name in file if not file.info(name).scheme.lossy]
        for each in kept:
            form.settings(each)
        items = [form.item(each) for each in kept]
        config = form.with_config({"dtype": "bfloat16"}, form.config(kept, []))
        texts = {"config.json": json.dumps(config).encode()}
        write_directory(str(folder.parent / "back"), items, texts, overwrite=True)
    same(folder, folder.parent / "back", (*left_out, *plain))
    again = open_source(folder.parent / "back")
    for name in (each.name for each in kept):
        assert torch.equal(decoded(again, name), decoded(source, name))
    return folder.parent / "back"


def refused(
    folder: pathlib.Path, said: Mapping, parts: Tensors, message: str, key: str = "quantization_config"
) -> None:
    """The module is refused with an error that names the directory, and nothing else is written beside it."""
    with pytest.raises(AibitError, match=message) as caught:
        one(folder / "bad", said, parts, key).planes("m.q.weight")
    assert str(folder / "bad") in str(caught.value)
    with pytest.raises(AibitError):
        aibit.convert(folder / "bad", folder / "m.aibit")
    assert [path.name for path in folder.iterdir()] == ["bad"]


# Damage to a module: functions that change what is said of it, or its parts.


def drop(end):
    """Leave a part out."""
    return lambda said, parts: parts.pop(end)


def put(end, edit):
    """Change a part."""
    return lambda said, parts: parts.update({end: edit(parts[end])})


def say(**changes):
    """Change settings."""
    return lambda said, parts: said.update(changes)
