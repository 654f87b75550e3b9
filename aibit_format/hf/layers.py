"""Tells what the layers of a model are, by their classes and by what the code around them does with their weights."""

from __future__ import annotations

import inspect
import re
from functools import cache

from .compat import WRITTEN_OUT, is_conv1d


def is_linear(module: object) -> bool:
    """Tell whether transformers can replace a module by a bitsandbytes layer."""
    from torch import nn

    return type(module) is nn.Linear or is_conv1d(module)


# What the code of a model does with the weight of a layer besides calling the layer: casts inputs to its dtype (unless
# it knows of weights in 8 bits), multiplies with it, takes it apart, or hands it to torch's own attention.
_USES = (
    re.compile(r"\.to\(\s*(?:dtype=)?self\.(\w+)\.weight\.dtype\s*\)"),
    re.compile(r"self\.(\w+)\.weight @"),
    re.compile(r"@ self\.(\w+)\.weight\b"),
    re.compile(r"self\.(\w+)\.weight\.(?:T\b|(?:t|chunk|split|squeeze|unsqueeze|view|reshape|transpose|float|type)\()"),
)
_ATTENTION = re.compile(r"multi_head_attention_forward\(.*?\n\s*\)", re.DOTALL)
_WEIGHT = re.compile(r"self\.(\w+)\.weight\b")
_DTYPE_OF = re.compile(r"(\w+) = self\.(\w+)\.weight\.dtype")


@cache
def weights_used(family: type) -> frozenset[str]:
    """Return the attributes of a class of modules that are layers whose weights its code uses by themselves.

    The codes of a quantized weight are integers, and would be taken for values: such layers have to keep theirs.
    """
    methods = [
        value
        for base in family.__mro__
        if base.__module__.split(".")[0] == "transformers"
        for value in map(inspect.unwrap, filter(inspect.isfunction, vars(base).values()))
        if "weight" in value.__code__.co_names
    ]
    code = "\n".join(inspect.getsource(method) for method in methods)
    if "_is_quantized" in code:  # it does something else then
        return frozenset()
    names = {name for use in _USES for name in use.findall(code)}
    names |= {name for call in _ATTENTION.findall(code) for name in _WEIGHT.findall(call)}
    for dtype, name in _DTYPE_OF.findall(code):
        if re.search(rf"self\.{name}\([^()]*\.to\(\s*(?:dtype=)?{dtype}\s*\)", code):
            names.add(name)
    return frozenset(name for name in names if not re.search(rf"\b{name}\.weight\.dtype\s*!=\s*torch\.int8", code))


def multiplies(module: object) -> bool:
    """Tell whether a module only multiplies with a weight [out, in] and adds a bias, as Linear does."""
    from torch import nn

    family = type(module)
    if not issubclass(family, nn.Linear):
        return False
    name = family.__module__, family.__name__
    return (family.forward is nn.Linear.forward and name[0].split(".")[0] == "transformers") or name in WRITTEN_OUT


_SCALED = re.compile(r"return super\(\)\.forward\(input_ids\) \* self\.embed_scale(?:\.to\(self\.weight\.dtype\))?\s*$")


def looks_up(module: object) -> bool:
    """Tell whether a module only looks up rows of a table, as Embedding does, and may scale them by ``embed_scale``."""
    from torch import nn

    return isinstance(module, nn.Embedding) and (type(module) is nn.Embedding or _scales(type(module)))


@cache
def _scales(family: type) -> bool:
    """Tell whether a class of embeddings of transformers does no more than multiply by ``embed_scale``."""
    ours = family.__module__.split(".")[0] == "transformers" and "forward" in vars(family)
    return ours and _SCALED.search(inspect.getsource(inspect.unwrap(vars(family)["forward"]))) is not None
