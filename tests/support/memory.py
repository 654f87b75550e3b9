"""Look at where the parameters of a model lie."""

from __future__ import annotations


def parameters_outside(model, file) -> list[str]:
    """Return the names of parameters whose memory is not the file's mapping."""
    start = file.storage.map.ctypes.data
    end = start + file.storage.size
    return [n for n, p in model.named_parameters() if p.numel() and not start <= p.data_ptr() < end]
