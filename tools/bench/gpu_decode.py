"""The sections of ``gpu.py`` that compute: tokens, and the products that they are made of."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from aibit_format.torch.evaluate.timing import generate
from aibit_format.torch.kernels.matmul import times_codes
from aibit_format.torch.load.model import load_model
from tools.bench import models
from tools.bench.gpu_run import NoTimeError, Run, pretrained

_PROMPT, _TOKENS = 128, 32
_FIRST = 3  # tokens before one is written down as a CUDA graph: compiled, and tried
# Rows and columns of weights: queries, keys and values, what follows attention, gate and up, down; of 1.1b and 7b.
_WEIGHTS = [(2560, 2048), (2048, 2048), (11264, 2048), (2048, 5632), (12288, 4096), (22016, 4096), (4096, 11008)]
# Rows, columns, stages and warps of the kernel's tiles: the default first.
_TILES = [(16, 512, 4, 4), (16, 256, 3, 4), (16, 256, 6, 4), (16, 512, 3, 4), (16, 512, 4, 8), (16, 1024, 3, 8),
          (32, 256, 4, 4)]  # fmt: skip


def decode(run: Run) -> None:
    """Tokens a second, greedily, with a cache, after a prompt of 128; batch 1 and 8."""
    checkpoint = models.checkpoint(run.model, run.work)
    ways: dict[str, Callable[[], Any]] = {
        "transformers bf16": lambda: pretrained(run, checkpoint, dtype=torch.bfloat16),
        "aibit int8, LLM.int8": lambda: load_model(run.aibit("int8"), run.device),
        "aibit int8, weight only": lambda: load_model(run.aibit("int8"), run.device, weight_only=True),
        "aibit nf4": lambda: load_model(run.aibit("nf4"), run.device),
    }
    rates: dict[str, float] = {}
    for name, way in ways.items():
        try:
            model = way()
            for batch in (1, 8):
                run.need(5)
                generate(model, batch, _PROMPT, 3)
                _, each = generate(model, batch, _PROMPT, _TOKENS if run.on_gpu else 3)
                samples = [batch / seconds for seconds in each]
                rates[f"{name}, batch {batch}"] = statistics.median(samples)
                run.note(f"{name}, batch {batch}", statistics.median(samples), "tokens/s", "", samples)
            del model
        except NoTimeError:
            raise
        except Exception as error:  # of one way; the others go on
            run.found["failed"][f"decode: {name}"] = run.reason(error)
        gc.collect()
    with contextlib.suppress(KeyError):
        ratio = rates["aibit int8, weight only, batch 1"] / rates["transformers bf16, batch 1"]
        run.note("weight only, of bf16, batch 1, bound by Python both", ratio)


def products(run: Run) -> None:
    """Single products with one row of inputs, the weights out of memory: the kernel's tiles, beside bf16."""
    for out, inner in _WEIGHTS if run.on_gpu else [(64, 512)]:
        x = torch.randn(1, inner, device=run.device, dtype=torch.bfloat16)
        codes = torch.randint(-127, 128, (out, inner), device=run.device, dtype=torch.int8)
        scales, weight = torch.ones(out, device=run.device), codes.to(torch.bfloat16)
        ways: dict[str, Callable[[], Any]] = {"bf16": lambda x=x, weight=weight: torch.nn.functional.linear(x, weight)}
        if run.on_gpu:
            for tile in _TILES:
                ways[f"tile {tile}"] = partial(kernel_product, x, codes, scales, tile)
        else:
            ways["weight only"] = partial(times_codes, x, codes, scales, 1.0, None)
        run.need(5 if run.on_gpu else 1)
        found = {name: microseconds(run, way) for name, way in ways.items()}
        for name, value in found.items():
            run.note(f"{out} x {inner}, {name}", value, "us")
        base, ours, *_ = found.values()
        run.note(f"{out} x {inner}, weight only as it is, of bf16's rate", base / ours)


def kernel_product(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, tile: tuple[int, ...]) -> torch.Tensor:
    from aibit_format.torch.kernels.triton_int8 import Tile, small_product  # where Triton is

    return small_product(x, codes, scales, 1.0, None, Tile(*tile))


def microseconds(run: Run, way: Callable[[], Any]) -> float:
    """The median; on a GPU of kernels alone, with nothing of the operands in its caches."""
    if run.on_gpu:
        from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

        return 1e3 * do_bench(way, warmup=10, rep=50, return_mode="median")
    return 1e6 * statistics.median(run.seconds(way))


def compiled(run: Run) -> None:
    """Tokens a second where a token is compiled and, on a GPU, one CUDA graph, so that Python takes no part in it."""
    for model in dict.fromkeys((run.model, "7b-8-layers")) if run.on_gpu else [run.model]:
        run.need(120 if run.on_gpu else 1)
        checkpoint = models.checkpoint(model, run.work)
        ways: dict[str, Callable[[], Any]] = {
            "transformers bf16": lambda checkpoint=checkpoint: pretrained(run, checkpoint, dtype=torch.bfloat16),
            "aibit int8, weight only":
                lambda model=model: load_model(run.aibit("int8", model), run.device, weight_only=True),
        }  # fmt: skip
        rates: list[float] = []
        for name, way in ways.items():
            run.need(60 if run.on_gpu else 1)
            samples = graph_rates(run, way(), 8 * _TOKENS if run.on_gpu else 1)
            rates.append(statistics.median(samples))
            run.note(f"{model}: {name}", rates[-1], "tokens/s", "", samples)
            gc.collect()
            torch.compiler.reset()
        run.note(f"{model}: weight only, of bf16", rates[1] / rates[0], "", ">= 1.5")


def graph_rates(run: Run, model: Any, tokens: int, rounds: int = 3) -> list[float]:
    """Tokens a second of each round, with a cache of fixed size; the prompt before them is not compiled."""
    from transformers import StaticCache

    how: dict[str, Any] = {} if run.on_gpu else {"backend": "aot_eager"}
    step = torch.compile(model.forward, fullgraph=True, dynamic=False, **how)
    cache = StaticCache(config=model.config, max_cache_len=_PROMPT + _FIRST + 1 + rounds * tokens)
    with torch.inference_mode():
        ids, places = (torch.arange(first, first + _PROMPT, device=run.device)[None] for first in (1, 0))
        ids = model(ids, position_ids=places, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        place = torch.full((1, 1), _PROMPT, device=run.device)

        def token() -> None:
            """The next one, with nothing but what lies on the device."""
            logits = step(ids, position_ids=place, past_key_values=cache, logits_to_keep=1).logits
            ids.copy_(logits[:, -1:].argmax(-1))
            place.add_(1)

        next_token = replayed(token) if run.on_gpu else token
        found = []
        for _ in range(rounds):
            run.sync()
            start = time.perf_counter()
            for _ in range(tokens):
                next_token()
            run.sync()
            found.append(tokens / (time.perf_counter() - start))
    return found


def replayed(token: Callable[[], None]) -> Callable[[], None]:
    """What does on the GPU what ``token`` did once, without its Python."""
    aside: Any = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # as torch wants it before a graph: nothing of this on the usual stream
        for _ in range(_FIRST):
            token()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token()
    return graph.replay
