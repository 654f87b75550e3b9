"""Times a prompt, and each token after it."""

from __future__ import annotations

import time
from typing import Any

import torch

# Ids of a prompt's tokens are below it, as every vocabulary has as many. What they are does not matter.
_IDS = 128


def generate(model: Any, batch: int, prompt: int, tokens: int) -> tuple[float, list[float]]:
    """Return the seconds of a prompt, and of each token after it, chosen greedily, with a cache.

    Args:
        model: a causal one of transformers.
        batch: sequences at once.
        prompt: tokens of each before the first that is generated.
        tokens: generated after that one, each a forward.
    """
    ids = (torch.arange(prompt, device=model.device) % _IDS + 1).expand(batch, -1)
    seconds, cache = [], None
    with torch.inference_mode():
        for _ in range(tokens + 1):
            _wait(model.device)
            start = time.perf_counter()
            result = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = result.logits[:, -1:].argmax(-1), result.past_key_values
            _wait(model.device)
            seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1:]


def _wait(device: torch.device) -> None:
    """Wait until a GPU has finished what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
