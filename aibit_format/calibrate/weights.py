"""Puts weights of a source into a model on the meta device, and takes them out again, one part of it at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .. import interop
from ..formats.bind import Binding, binding_of
from ..formats.sources import Source, SourceTensor, values
from ..hf.meta_model import MetaModel


class Weights:
    """Provide the parameters of a model from a source.

    Args:
        model: the empty model.
        source: of its weights.
        bindings: which tensors fill which parameter.
        device: where they are to be.
    """

    def __init__(self, model: MetaModel, source: Source, bindings: Mapping[str, Binding], device: torch.device) -> None:
        self._model, self._source, self._bindings, self._device = model, source, bindings, device
        for name, buffer in list(model.module.named_buffers()):
            if buffer.device.type != "meta":
                self._put(name, buffer.to(device))

    @contextmanager
    def within(self, names: Collection[str], copied: bool = True) -> Iterator[None]:
        """Give the named parameters their values while the context is open.

        Without ``copied``, those that lie in the source as the model wants them are views of its pages, on the CPU.
        """
        before = {}
        try:
            for name in names:
                owner, _, leaf = name.rpartition(".")
                module = self._model.module.get_submodule(owner)
                before[name] = module._parameters.get(leaf, module._buffers.get(leaf))
                if (value := self._value(name, copied)) is not None:
                    self._put(name, value)
            yield
        finally:
            for name, value in before.items():
                self._put(name, value)

    def _value(self, name: str, copied: bool) -> torch.Tensor | None:
        """Read a parameter; ``None`` for a buffer that the constructor has computed."""
        binding = binding_of(self._model, self._bindings, name)
        if binding is None:
            return None
        spec = self._model.parameters[name]
        array, dtype, turned = self._read(binding)
        value = interop.to_torch(array, dtype)
        value = value.transpose(-1, -2) if turned else value
        wanted = interop.torch_dtypes()[spec.dtype]
        made = value.to(self._device, wanted)
        if made.data_ptr() == value.data_ptr() and (
            copied or made.ndim < 2
        ):  # pages of the source cannot be written to
            made = made.clone()
        return made.contiguous()

    def _read(self, binding: Binding) -> tuple[np.ndarray, str, bool]:
        if binding.read is not None:
            return *binding.read(), False
        tensor: SourceTensor = self._source.tensors[binding.sources[0]]
        return *values(self._source, tensor.name), tensor.transposed

    def _put(self, name: str, value: Any) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self._model.module.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = value
        elif value is not None:
            module._parameters[leaf] = (
                value if isinstance(value, torch.nn.Parameter) else torch.nn.Parameter(value, requires_grad=False)
            )
