"""Builds models whose parameters are on the meta device, seen by no other thread.

transformers builds such a model under a default dtype and with replaced initializers, and both belong to the whole
process: a module that another thread builds meanwhile gets them too. Here a `TorchFunctionMode` does the same, and
torch keeps modes for each thread by itself. This file imports torch, and is imported when a model is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from types import FrameType, MethodWrapperType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..errors import LoadError
from . import compat
from .compat import INSIDES, incompatible, inside
from .deadline import deadline
from .limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_INITIALIZERS = "torch.nn.init"
_META = {"device": "meta"}
Place = tuple[dict[str, "torch.Tensor | None"], str, torch.Tensor]  # buffers of a module, a name, what it stands for
_KNOWN = {"seen", "recipe"}  # attributes that tensors get here
# Functions that make tensors on the default device: with values, and with none or random ones.
_MAKERS = (
    "ones", "zeros", "full", "eye", "arange", "range", "linspace", "logspace", "tensor", "as_tensor", "asarray",
    "scalar_tensor", "tril_indices", "triu_indices", "bartlett_window", "blackman_window", "hamming_window",
    "hann_window", "kaiser_window", "fft.fftfreq", "fft.rfftfreq",
)  # fmt: skip
_UNFILLED = ("empty", "empty_permuted", "empty_strided", "rand", "randn", "randint", "randperm")
# Methods that name a dtype without an argument.
_NAME_A_DTYPE = frozenset({torch.Tensor.float, torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16})


@cache
def _makers() -> dict[Callable[..., Any], bool]:
    """Return the functions, and whether the tensor has values that can be had again."""
    return {attrgetter(name)(torch): name in _MAKERS for name in (*_MAKERS, *_UNFILLED)}


@cache
def _floats() -> frozenset[Callable[..., Any]]:
    """Return those that make floating-point tensors where no dtype is given."""
    return frozenset({torch.empty, torch.ones, torch.zeros, torch.rand, torch.randn, torch.eye})


class OnMeta(TorchFunctionMode):
    """Puts new tensors on the meta device, in ``dtype`` where their dtype is left to torch; runs no initializer.

    A dtype is left to torch where a function is given none, and no floating-point tensor to take it from.

    Raises:
        LoadError: more than ``most`` tensors are made.
    """

    def __init__(self, dtype: torch.dtype, most: int) -> None:
        super().__init__()
        self._dtype, self._default = dtype, torch.get_default_dtype()
        self._most = self._left = most

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        if type(func) is MethodWrapperType:  # an attribute
            return func(*args)
        options = dict(kwargs or {})
        if getattr(func, "__module__", None) == _INITIALIZERS:
            return options["tensor"] if "tensor" in options else args[0]
        if func is torch.Tensor.detach:  # as nn.Buffer does: what is known of the one is true of the other
            result = func(*args, **options)
            result.__dict__.update({key: args[0].__dict__[key] for key in _KNOWN & args[0].__dict__.keys()})
            return result
        made = func in _makers() and options.get("device") is None
        if made:
            options.pop("device", None)
            if func in _floats() and options.get("dtype") is None:
                options["dtype"] = self._dtype
            self._left -= 1
            if self._left < 0:
                raise LoadError(f"more than {self._most} tensors, which the file has not")
        result = func(*args, **options, **_META) if made else func(*args, **options)
        if type(result) is not torch.Tensor:
            return result
        if self._dtype is not self._default and result.dtype is self._default:
            if func not in _NAME_A_DTYPE and _left_to_torch([*args, *options.values()], sys._getframe(1)):
                result = result.to(self._dtype)
            elif not (args and result is args[0]):
                result.seen = True  # type: ignore[attr-defined]
        if made and _makers()[func] and not any(isinstance(value, torch.Tensor) for value in args):
            result.recipe = func, args, options, result._version  # type: ignore[attr-defined]
        return result


def _left_to_torch(arguments: Sequence[Any], caller: FrameType) -> bool:
    """Return whether the dtype of a result is the default one, for these arguments of a function."""
    if any(isinstance(value, torch.dtype) for value in arguments):
        # No mode is asked for the default dtype itself, and so whoever asks for it has been given another.
        return "get_default_dtype" in caller.f_code.co_names
    return not any(_has_a_dtype(value) for value in arguments)


def _has_a_dtype(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() or value.is_complex()
    if isinstance(value, (tuple, list)):
        return bool(value) and isinstance(value[0], torch.Tensor) and any(map(_has_a_dtype, value))
    return isinstance(value, (np.ndarray, np.generic))


def finish(model: torch.nn.Module, dtype: torch.dtype, most: int) -> list[Place]:
    """Move parameters to the meta device that no mode saw, such as ``torch.Tensor(3)``, and make simple buffers real.

    A buffer is simple if it is what a function made of plain values, as ``torch.zeros(3)`` does. Returns the others.

    Raises:
        LoadError: all buffers together have more than ``most`` bytes.
    """
    wanted = sum(value.nbytes for value in {id(value): value for value in model.buffers()}.values())
    if wanted > most:
        raise LoadError(f"its buffers would have {wanted} bytes, and at most {most} are believed of this file")
    default = torch.get_default_dtype()
    others: list[Place] = []
    real: dict[int, torch.Tensor] = {}  # a buffer may belong to several modules
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and value.device.type != "meta":
                moved = torch.empty_like(value, device="meta", dtype=dtype if value.dtype is default else value.dtype)
                module._parameters[name] = torch.nn.Parameter(moved, requires_grad=value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                made = module._buffers[name] = real.setdefault(id(value), _real(value, dtype, default))
                if made.device.type == "meta":
                    others.append((module._buffers, name, made))
    return others


def _real(buffer: torch.Tensor, dtype: torch.dtype, default: torch.dtype) -> torch.Tensor:
    if buffer.device.type != "meta":
        return buffer if buffer.dtype is not default or hasattr(buffer, "seen") else buffer.to(dtype)
    func, args, options, version = getattr(buffer, "recipe", (None, (), {}, 0))
    if func is None or buffer._version != version:  # it was written to
        return buffer
    return func(*args, **options).to(buffer.dtype)


@contextmanager
def zeros_in(places: Sequence[Place]) -> Iterator[None]:
    """Put zeros in the place of buffers on the meta device; those that nobody writes to inside go back there."""
    zeros = {id(value): torch.zeros_like(value, device="cpu") for _, _, value in places}
    versions = {key: value._version for key, value in zeros.items()}
    for buffers, name, value in places:
        buffers[name] = zeros[id(value)]
    yield
    for buffers, name, value in places:
        if buffers[name] is zeros[id(value)] and zeros[id(value)]._version == versions[id(value)]:
            buffers[name] = value


def build(
    family: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    limits: Limits,
    attention: str | None = None,
) -> PreTrainedModel:
    """Build a model within limits, its parameters on the meta device, in ``dtype``.

    transformers would set the default dtype of the whole process, which other threads would see. It does not for a
    configuration without one; the model's configurations get theirs afterwards.
    """
    _require_no_initializing(inside("get_torch_context_manager_or_global_device"))
    _set_dtype(config, None)
    with OnMeta(dtype, limits.most_tensors), deadline(limits.most_seconds):
        model = compat.made(family, config, attention)
    configs = {id(found): found for module in model.modules() if (found := getattr(module, "config", None)) is not None}
    for found in configs.values():
        _set_dtype(found, dtype)
    return model


@cache
def _require_no_initializing(device: Callable[[], torch.device | None]) -> None:
    """Check once that transformers takes new tensors to be on the meta device, where it initializes none."""
    with OnMeta(torch.get_default_dtype(), most=8):
        if getattr(device(), "type", None) != "meta":
            raise incompatible(INSIDES["get_torch_context_manager_or_global_device"])


def _set_dtype(config: Any, dtype: torch.dtype | None) -> None:
    from transformers import PreTrainedConfig

    if isinstance(config, PreTrainedConfig):
        config.dtype = dtype
        for name in compat.sub_configs(type(config)):
            _set_dtype(getattr(config, name, None), dtype)


def compute_buffers(model: Any) -> None:
    """Compute the buffers that constructors compute, as ``from_pretrained`` does, in the default dtype.

    Parameters are on the meta device. Those beside buffers are marked as finished, so that they are left as they are.
    """
    from transformers import PreTrainedModel

    def compute(module: torch.nn.Module, model: Any) -> bool:
        """Let each model compute the buffers of its own modules, those inside a module first, where there are any."""
        model = module if isinstance(module, PreTrainedModel) else model
        found = [compute(child, model) for child in module.children()]
        if not module._buffers and not any(found):
            return False
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        compat.fill(model, module)
        return True

    compute(model, model)
