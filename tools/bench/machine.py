"""Describe the machine that figures were taken on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LIBRARIES = (
    "numpy", "torch", "transformers", "bitsandbytes", "safetensors", "fastsafetensors", "accelerate", "gguf", "xxhash",
    "construct", "xllamacpp",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Return what figures depend on, and nothing that tells whose machine it is."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = [line.partition(":") for line in file]
    cpu = next((value.strip() for name, _, value in fields if name.strip() == "model name"), platform.processor())
    flags = next((value.split() for name, _, value in fields if name.strip() == "flags"), [])
    found = {
        "cpu": cpu,
        "vectors": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "python": platform.python_version(),
    }
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
