"""Runs GGUF files in llama.cpp, by the package xllamacpp where it is installed, and says how long it took."""

from __future__ import annotations

import json
import os
import statistics
from importlib.util import find_spec
from typing import Any

from tools.bench.probe import Clock, Result

MISSING = "xllamacpp is not installed, not measured"
ROUNDS = 3  # prompts, of which the medians count
_ROOM = 64  # tokens of context beyond what is asked for
_PROBABLE = 4096  # tokens whose logarithms of probabilities are asked for


def installed() -> bool:
    """Whether there is llama.cpp."""
    return find_spec("xllamacpp") is not None


def llama(path: str, prompt: int, tokens: int, texts: list[list[int]]) -> Result:
    """Seconds until there is a model, of a prompt, and of each token after it; and what follows ``texts``.

    Everything is llama.cpp's default (a cache in float16 among it), but for as many threads as there are cores.

    Returns:
        Besides seconds, ``after``: for each of the texts, which are ids, token -> logarithm of its probability.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = path, prompt + tokens + _ROOM, 1
    parameters.warmup = parameters.fit_params = False
    parameters.verbosity, parameters.n_gpu_layers = -1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    with Clock() as loading:
        server = xllamacpp.Server(parameters)
    _asked(server, range(1, 9), 2)  # the first touch of mapped pages
    ids = [i % 128 + 1 for i in range(prompt)]
    timings = [_asked(server, ids, tokens + 1)["timings"] for _ in range(ROUNDS)]
    if wrong := [each for each in timings if (each["prompt_n"], each["predicted_n"]) != (prompt, tokens + 1)]:
        raise SystemExit(f"{path}: llama.cpp ran other numbers of tokens: {wrong}")
    first = statistics.median(each["prompt_ms"] for each in timings) / 1e3
    # The first token is chosen from what the prompt has left, without a forward.
    token = statistics.median(each["predicted_ms"] for each in timings) / tokens / 1e3
    found = [_asked(server, text, 1, n_probs=_PROBABLE)["choices"][0]["logprobs"]["content"][0] for text in texts]
    after = [{str(token["id"]): token["logprob"] for token in one["top_logprobs"]} for one in found]
    return {"load": loading.seconds, "first": first, "token": token, "after": after}


def _asked(server: Any, ids: Any, count: int, **options: Any) -> Any:
    request = {"prompt": list(ids), "n_predict": count, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True}
    answer = server.handle_completions(request | options)
    return json.loads(answer) if isinstance(answer, (str, bytes)) else answer
