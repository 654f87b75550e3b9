"""What processes of the rows ``formats`` and ``packed`` do: a file with every rounding of inputs, and errors."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tools.bench.loaders import loader
from tools.bench.probe import Clock, Result

_ROUNDS = 3  # prompts in a process, and tokens after each, of which the medians count
_WARM = 8  # tokens of the prompt that a process warms up with
ROUNDINGS = ("float32", "int16", "int8")  # of inputs; see ``load_model``
PROBABLE = 256  # tokens that logits are compared for, those with the largest in float64


def follow(
    way: str,
    source: str,
    tiny: str,
    prompt: int,
    tokens: int,
    target: str | None = None,
    rounding: str | None = None,
    rounds: int = _ROUNDS,
    texts: list[list[int]] | None = None,
) -> Result:
    """A source to an ``.aibit`` file, that to a model, a prompt and tokens after it: seconds of each.

    Args:
        way: of ``loaders``, by which the file is loaded; the source itself without a ``target``.
        source: a checkpoint.
        tiny: one of the same kind, to warm up with.
        prompt: tokens before the first that is generated.
        tokens: generated, each timed.
        target: the file to convert to.
        rounding: of inputs, for tokens of a second model of the same file.
        rounds: prompts, and tokens after each, of which the medians count.
        texts: ids, after which logits are compared with those in float64; see ``differences``.
    """
    from aibit_format.convert.convert import convert
    from aibit_format.torch.evaluate import timing
    from aibit_format.torch.load.model import load_model

    run, found = loader(way), {}
    if target is not None:
        convert(tiny, target + ".warm", overwrite=True)
        timing.generate(run(target + ".warm"), 1, _WARM, 2)
        Path(target + ".warm").unlink()
        with Clock() as clock:
            convert(source, target, overwrite=True)
        found["convert"] = clock.seconds
    else:
        timing.generate(run(tiny), 1, _WARM, 2)
    with Clock() as clock:
        model = run(target or source)
    found |= {"load": clock.seconds, **_generated({"": model}, prompt, tokens, rounds)[""]}
    if rounding and target:
        model = load_model(target, weight_only=True, dtype="bfloat16", activations=rounding)
        found["rounded"] = _generated({"": model}, prompt, tokens, 1)[""]["token"]
    if texts and target:
        found["differences"] = differences(target, texts)
    return found


def roundings(path: str, tiny: str, prompt: int, tokens: int) -> Result:
    """A prompt, and the median of the tokens after it, with each rounding of inputs in turn: rounding -> seconds."""
    from aibit_format.torch.evaluate import timing
    from aibit_format.torch.load.model import load_model

    loader("aibit")
    timing.generate(load_model(tiny), 1, _WARM, 2)
    models = {kind: load_model(path, weight_only=True, activations=kind) for kind in ROUNDINGS}
    return _generated(models, prompt, tokens, 1)


def _generated(models: dict[str, Any], prompt: int, tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of prompts and tokens of several models, in turn: name -> ``first`` and ``token``, in seconds."""
    import torch

    from aibit_format.torch.evaluate import timing

    firsts: dict[str, list[float]] = {name: [] for name in models}
    others: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        with torch.inference_mode():
            model(torch.ones(1, 8, dtype=torch.long))  # the first touch of mapped pages is the row `load`'s
    for _ in range(rounds):
        for name, model in models.items():
            first, each = timing.generate(model, 1, prompt, tokens)
            firsts[name].append(first)
            others[name] += each
    return {
        name: {"first": statistics.median(firsts[name]), "token": statistics.median(others[name])} for name in models
    }


def differences(path: str, texts: list[list[int]]) -> Result:
    """How far logits after ``texts``, of ids, are from those of decoded weights in float64; norms are in float32.

    What is compared are logarithms of probabilities, of the ``PROBABLE`` tokens with the largest in float64.

    Returns:
        ``largest``: way -> largest difference; ``reference``: for each text, token -> its logarithm in float64.
    """
    import torch

    from aibit_format.file.reader import File
    from aibit_format.torch.load.model import load_model

    loader("aibit")
    with File(path) as file:
        state = {name: torch.from_numpy(file.dequantize(name)) for name in file}

    def decoded(dtype: torch.dtype) -> Any:
        model: Any = load_model(path)
        kind, config = type(model), model.config
        vars(config).pop("quantization_config", None)  # of bitsandbytes' layers
        values = {name: value.to(dtype) for name, value in state.items()}
        return kind.from_pretrained(None, config=config, state_dict=values, dtype=dtype).eval()

    def after(model: Any) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [model(torch.tensor([text])).logits[0, -1].double().log_softmax(-1) for text in texts]

    true = after(decoded(torch.float64))
    best = [logits.topk(min(PROBABLE, len(logits))).indices for logits in true]

    def largest(found: list[torch.Tensor]) -> float:
        return max(float((a - b)[ids].abs().max()) for a, b, ids in zip(found, true, best, strict=True))

    ways = {"decoded, float32": largest(after(decoded(torch.float32)))}
    ways["decoded, bf16"] = largest(after(decoded(torch.bfloat16)))
    for kind in ROUNDINGS:
        model = load_model(path, weight_only=True, activations=kind)
        ways[f"{kind}, model in {str(model.dtype).removeprefix('torch.')}"] = largest(after(model))
        if not getattr(model, "is_quantized", False):  # bitsandbytes' layers stay in their dtype
            ways[f"{kind}, model in float32"] = largest(after(model.float()))
    reference = [{str(int(i)): float(logits[i]) for i in ids} for logits, ids in zip(true, best, strict=True)]
    return {"largest": ways, "reference": reference}


def beyond(reference: list[dict[str, float]], after: list[dict[str, float]]) -> float:
    """The largest difference of logarithms of probabilities, of tokens that both have."""
    pairs = zip(reference, after, strict=True)
    return max(abs(here[i] - there[i]) for here, there in pairs for i in here.keys() & there.keys())
