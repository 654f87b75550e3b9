"""Checks what callers of ``load_model`` ask for: one device, a dtype, a rounding of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import LoadError
from ...hf.config import CONFIG_DTYPES
from ...schemes.base import FLOATS
from ..kernels.packed import ACTIVATIONS

Device = str | int | torch.device


@dataclass(frozen=True)
class Options:
    """Says how a model is loaded: the arguments of ``load_model`` of these names, checked.

    ``dtype`` is a name of ``aibit_format.dtypes``; ``None``: what the file says.
    """

    device: torch.device
    weight_only: bool
    activations: str | None
    tp: Any
    trainable: bool
    dtype: str | None
    attn_implementation: str | None

    @classmethod
    def of(
        cls,
        device: Device,
        device_map: Any,
        weight_only: bool,
        activations: str | None,
        tp: Any,
        trainable: bool,
        dtype: str | torch.dtype | None,
        attn_implementation: str | None,
    ) -> Options:
        """Check what a caller asks for.

        Raises:
            LoadError: it is not to be had, or contradicts itself.
        """
        if activations is not None and activations not in ACTIVATIONS:
            raise LoadError(f"activations {activations!r}, one of {', '.join(ACTIVATIONS)}")
        if trainable and tp is not None:
            raise LoadError("trainable=True with tp: a model on several ranks is for inference")
        name = None if dtype is None or dtype == "auto" else _float(dtype)
        return cls(_one_device(device, device_map), weight_only, activations, tp, trainable, name, attn_implementation)


def _float(dtype: Any) -> str:
    """Return the name here of a dtype in which models compute."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, (str, torch.dtype)) else ""
    found = CONFIG_DTYPES.get(name, name)
    if found not in FLOATS:
        names = [known for known, name in CONFIG_DTYPES.items() if name in FLOATS]
        raise LoadError(f"dtype={dtype!r}: a model computes in one of {', '.join(names)}")
    return found


def _one_device(device: Device, device_map: Any) -> torch.device:
    if device_map is not None:
        found = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
        if len(found) != 1 or found & {"balanced", "balanced_low_0", "sequential", "disk"}:
            raise LoadError(f"device_map={device_map!r}: a model is loaded onto one device; name it: device='cuda:0'")
        only = found.pop()
        device = ("cuda" if torch.cuda.is_available() else "cpu") if only == "auto" else only
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise LoadError(f"device={device!r}: {error}") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device={str(device)!r}: this torch ({torch.__version__}) sees no CUDA device")
    if target.type == "meta":
        raise LoadError("device='meta': nothing would be loaded")
    if target.type == "cuda" and target.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # threads have a current device of their own
    return target
