"""Reads a transformers model in memory as a source: with floating-point weights, or quantized by bitsandbytes.

Of a model that was loaded from an ``.aibit`` file, the planes of every scheme are taken over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import interop
from ..errors import MissingPackageError, SourceError, told_by
from ..hf.compat import replaced_conv1d
from ..schemes import Scheme
from .huggingface.bitsandbytes import QuantizedStateDict, computed_with
from .huggingface.settings import of_config
from .huggingface.source import read_documents
from .source import SourceFile, SourceTensor
from .torch_save.pickled import plain_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_METHODS = (None, "bitsandbytes")


class Pretrained:
    """Provide the tensors of a model, and its tokenizer. Tensors are copied from their device one at a time, when read.

    Those that accelerate has offloaded are read from where its hooks have them.

    Raises:
        SourceError: it is not a transformers model; it is quantized by something else; it has weights on the meta
            device; or bitsandbytes has repacked its 4-bit weights.
    """

    kind: ClassVar[str] = "pretrained"
    no_model = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        try:
            from transformers import PreTrainedModel
        except ImportError as error:
            raise MissingPackageError("a model in memory needs transformers: pip install 'aibit-format[hf]'") from error
        if not isinstance(model, PreTrainedModel):
            raise SourceError(f"a {type(model).__name__}: neither a path, a source, nor a transformers PreTrainedModel")
        self.architecture = type(model).__name__
        self.path = f"<{self.architecture} in memory>"
        self._model, self._tokenizer = model, tokenizer
        config = model.config.to_dict()
        self.metadata = computed_with(config.get("quantization_config") or {})
        method = of_config(config).method
        if method not in _METHODS:
            raise SourceError(f"{self.path}: quantized with {method!r}; known in memory: bitsandbytes")
        self._stored = self._modules()
        self._check_packing()
        self._offloaded = dict(_offloaded(model))
        self._state = {name: self._plain(name, value) for name, value in self._values().items()}
        stored = {
            name: SourceTensor(name, tuple(value.shape), interop.dtype_name(value.dtype), self.path)
            for name, value in self._state.items()
        }
        dtype = interop.dtype_name(model.dtype)
        self._state_dict = QuantizedStateDict(self.path, stored, self._read, dtype, self._conv1d().__contains__)

    @cached_property
    def tensors(self) -> dict[str, SourceTensor]:
        found = dict(self._state_dict.tensors)
        for name, module in self._stored.items():
            shape, dtype = tuple(module.shape), module.logical_dtype
            transposed = module.transposed or replaced_conv1d(module)
            found[name] = SourceTensor(name, shape, dtype, self.path, module.scheme, transposed)
        return found

    @property
    def files(self) -> list[SourceFile]:
        return []

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """Return the documents that ``save_pretrained`` writes beside the weights."""
        model = self._model
        config = deepcopy(model.config)
        config.architectures = [self.architecture]
        config.dtype = str(model.dtype).removeprefix("torch.")
        with tempfile.TemporaryDirectory(prefix="aibit-") as folder:
            try:
                config.save_pretrained(folder)
                if model.can_generate() and model.generation_config is not None:
                    model.generation_config.save_pretrained(folder)
                if self._tokenizer is not None:
                    self._tokenizer.save_pretrained(folder)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise SourceError(f"{self.path}: transformers cannot save its documents: {told_by(error)}") from error
            return read_documents(folder)

    def planes(self, name: str) -> dict[str, np.ndarray]:
        if name not in self._stored:
            return self._state_dict.planes(name)
        return {role: interop.to_numpy(plane.cpu())[0] for role, plane in self._stored[name].planes().items()}

    def _modules(self) -> dict[str, Any]:
        """Find the modules of a loaded ``.aibit`` file that hold a weight in a scheme, by the weight's name."""
        modules = self._model.named_modules()
        stored = {name: module for name, module in modules if isinstance(getattr(module, "scheme", None), Scheme)}
        return {f"{name}.{module.leaf}".removesuffix("."): module for name, module in stored.items()}

    def _values(self) -> dict[str, Any]:
        """Return the model's state dict without the planes of those modules."""
        planes = {
            f"{name.removesuffix(module.leaf).removesuffix('.')}.{role}"
            for name, module in self._stored.items()
            for role in module.planes()
        }
        return {name: value for name, value in self._model.state_dict().items() if name not in planes}

    def _read(self, name: str) -> np.ndarray:
        value = self._state[name]
        if value.is_meta:
            weights, key = self._offloaded[name]
            value = weights[key].to(value.dtype).view(value.shape)
        return interop.to_numpy(value.cpu())[0]

    def _plain(self, name: str, value: Any) -> torch.Tensor:
        """Return a tensor of the state dict as a plain one; bitsandbytes' own classes only wrap finished codes."""
        import torch

        where = f"{self.path}: tensor {name!r}"
        family = type(value)
        if family not in (torch.Tensor, torch.nn.Parameter) and not family.__module__.startswith("bitsandbytes."):
            raise SourceError(f"{where}: a {family.__name__}, which is not a plain tensor")
        value = value.detach().as_subclass(torch.Tensor)
        if not (value.is_meta and name in self._offloaded):
            plain_dtype(value, where)
        return value

    def _check_packing(self) -> None:
        for name, module in self._model.named_modules():
            if f"{name}.weight" in self._stored:
                continue
            canonical = getattr(module, "canonical", None)  # what a layer of a loaded .aibit file puts into state dicts
            if canonical is not None and canonical[-1] is module.weight:
                continue
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise SourceError(
                    f"{self.path}: tensor {name + '.weight'!r}: bitsandbytes repacked it in the first forward pass on "
                    "the CPU and rounded its scales to bfloat16; convert the original, or this model before it runs"
                )

    def _conv1d(self) -> set[str]:
        """Find the weights that bitsandbytes quantized in place of a Conv1D."""
        return {f"{name}.weight" for name, module in self._model.named_modules() if replaced_conv1d(module)}


def _offloaded(model: PreTrainedModel) -> Iterator[tuple[str, tuple[Mapping[str, torch.Tensor], str]]]:
    """Yield the name of each tensor that accelerate has put elsewhere, the mapping that has its values, and its key."""
    for owner, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            weights = getattr(each, "weights_map", None)
            if weights is None:
                continue
            inside = bool(getattr(each, "place_submodules", False))
            for key, _ in (*module.named_parameters(recurse=inside), *module.named_buffers(recurse=inside)):
                yield f"{owner}.{key}" if owner else key, (weights, key)
