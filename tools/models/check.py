"""Tries model types: ``python -m tools.models.check TYPE ...`` prints a JSON object for each.

A small model with random weights is saved as transformers saves it, and converted. What the loaded file gives is
compared, bit for bit, with what ``from_pretrained`` gives: as it is, with ``load_in_8bit``, and with nf4. There fused
experts are kept, as transformers does; where a model has some, it is also compared with experts that are quantized
against the same values in the place of its own.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import aibit_format as aibit
from aibit_format.errors import AibitError
from aibit_format.hf import compat
from aibit_format.hf.config import WITHOUT_EFFECT
from aibit_format.hf.limits import Limits
from aibit_format.hf.meta_model import ParameterSpec, build_meta_model
from aibit_format.torch.layers.dequantized import Quantized
from aibit_format.torch.layers.experts import QuantizedExperts
from tools.models.tiny import VOCABULARY, tiny_config

# The tables of classes, those that generate first.
_FIRST = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM")
_MOST_PARAMETERS = 20_000_000
_LAYERS = (Linear4bit, Linear8bitLt, Quantized)
_EXPERTS = "experts"
_CLOSE = 1e-3  # of the largest output, in float32: products are added in another order, layer after layer
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "16 bits": ("bf16", {}),
    "int8": ("int8", {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}),
    "nf4": ("nf4", {"quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)}),
}  # fmt: skip


def classes(model_type: str) -> list[str]:
    """Return the names of the classes that transformers' tables have for a model type, the most useful first."""
    tables = {
        name.removeprefix("MODEL_").removeprefix("FOR_").removesuffix("_MAPPING_NAMES").removesuffix("MAPPING_NAMES"): t
        for name, t in vars(modeling_auto).items()
        if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES")
    }
    order = [name for name in _FIRST if name in tables] + [name for name in tables if name not in _FIRST]
    found: list[str] = []
    for name in order:
        entry = tables[name].get(model_type)
        found += [entry] if isinstance(entry, str) else list(entry or ())
    return list(dict.fromkeys(found))


def inputs(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs to try, the likeliest first."""
    config, wanted = model.config, inspect.signature(model.forward).parameters
    ids = torch.arange(5, 13)[None] % VOCABULARY
    extra = {"decoder_input_ids": ids} if "decoder_input_ids" in wanted and config.is_encoder_decoder else {}
    if "input_ids" in wanted:
        yield {"input_ids": ids, **extra}
    inner = [config, *(getattr(config, key, None) for key in ("vision_config", "backbone_config", "audio_config"))]
    for part in filter(None, inner):
        size = getattr(part, "image_size", None)
        for side in [size] if isinstance(size, int) else [32, 64]:
            pixels = torch.linspace(-1, 1, side * side * 3).view(1, 3, side, side)
            if "pixel_values" in wanted:
                yield {"pixel_values": pixels, **extra}
                if "input_ids" in wanted:
                    yield {"pixel_values": pixels, "input_ids": ids, **extra}
        mels = getattr(part, "num_mel_bins", 16) or 16
        length = 2 * (getattr(part, "max_source_positions", None) or 32)
        if "input_features" in wanted:
            yield {"input_features": torch.linspace(-1, 1, mels * length).view(1, mels, length), **extra}
            yield {"input_features": torch.linspace(-1, 1, mels * length).view(1, length, mels), **extra}
    if "input_values" in wanted:
        yield {"input_values": torch.linspace(-1, 1, 4000)[None], **extra}
        yield {"input_values": torch.linspace(-1, 1, 4000)[None, None], **extra}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors of a model's output."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors(inner)


def built(model_type: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Return a small model of a type, and inputs that it takes.

    Raises:
        ValueError: says why there is none.
    """
    why = "no class in the tables"
    for name in classes(model_type):
        try:
            torch.manual_seed(0)
            config = tiny_config(model_type)
            family = getattr(transformers, name)
            with torch.device("meta"):
                count = sum(value.numel() for value in family(config).parameters())
            if count > _MOST_PARAMETERS:
                raise ValueError(f"{count} parameters")
            model = family(tiny_config(model_type)).to(torch.bfloat16).eval()
        except Exception as error:
            why = f"{name} is not built: {type(error).__name__}: {error}"
            continue
        for given in inputs(model):
            given = {key: v.to(model.dtype) if v.is_floating_point() else v for key, v in given.items()}
            try:
                with torch.inference_mode():
                    torch.manual_seed(0)
                    if list(tensors(model(**given))):
                        return model, given
            except Exception as error:
                why = f"{name} does not run: {type(error).__name__}: {error}"
    raise ValueError(why)


def outputs(model: PreTrainedModel, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Run a model with a fixed seed."""
    torch.manual_seed(0)
    given = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in given.items()}
    with torch.inference_mode():
        return list(tensors(model(**given)))


def compared(found: list[torch.Tensor], expected: list[torch.Tensor]) -> str:
    """Return ``"equal"``, or how far two outputs are apart."""
    if len(found) != len(expected):
        return f"{len(found)} outputs, not {len(expected)}"
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{a.dtype} {list(a.shape)}, not {b.dtype} {list(b.shape)}"
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            worst = max(worst, float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)))
    return "equal" if worst == 0 else f"off by {worst:.2g}"


def tried(action: Callable[[], Any]) -> Any:
    """Return what an action returns, or its error in a line."""
    try:
        return action()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return re.sub(rf"{tempfile.gettempdir()}/\S*?/", "", text)[:300]


def check(model_type: str, folder: Path) -> dict[str, Any]:
    """Try a model type; ``folder`` is for its files."""
    try:
        model, given = built(model_type)
    except Exception as error:
        return {"type": model_type, "built": " ".join(f"{error}".split())[:300]}
    family = type(model)
    found: dict[str, Any] = {"type": model_type, "class": family.__name__, "inputs": sorted(given)}
    found["saved"] = tried(lambda: model.save_pretrained(folder / "hf"))
    experts = [spec.name for spec in _parameters(folder) if spec.role == _EXPERTS]
    rules = {rf"^{re.escape(name)}$": "keep" for name in experts}
    for way, (scheme, options) in WAYS.items():
        found[way] = tried(lambda: tried_in(folder, family, given, scheme, options, rules))  # noqa: B023 - called at once
    if experts:
        found[_EXPERTS] = tried(lambda: tried_with_experts(folder, family, given))
    return found


def _parameters(folder: Path) -> list[ParameterSpec]:
    """Return what the package says of a saved model's parameters; nothing if it builds no model."""
    try:
        config = json.loads((folder / "hf" / "config.json").read_text())
        built = build_meta_model(config, Limits.of([_MOST_PARAMETERS]))
    except (AibitError, OSError):  # which converting it says too
        return []
    return [*built.parameters.values()]


def tried_with_experts(folder: Path, family: type[PreTrainedModel], given: dict[str, torch.Tensor]) -> str:
    """Convert with quantized experts; return how outputs compare with those of the decoded values, in float32.

    In bfloat16 a router may choose other experts for the sake of a last bit.
    """
    aibit.convert(folder / "hf", folder / "m.aibit", scheme="int8-absmax", overwrite=True)
    with aibit.open(folder / "m.aibit") as file:
        values = {name: torch.from_numpy(file.dequantize(name)) for name in file}
        transposed = {name for name in file if file.info(name).transposed}
    model = aibit.load_model(folder / "m.aibit", dtype="float32")
    stacks = sum(isinstance(module, QuantizedExperts) for module in model.modules())
    found = outputs(model, given)
    plain = family.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, place in plain.state_dict().items():
            if name in values:
                place.copy_(values[name].mT if name in transposed else values[name])
    compat.run_experts_by_themselves(plain)
    result = compared(found, outputs(plain, given))
    if not stacks:
        return "no experts stay packed"
    off = float(result.removeprefix("off by ")) if result.startswith("off by ") else 0.0
    return "equal" if result == "equal" or 0 < off <= _CLOSE else result


def tried_in(
    folder: Path, family: type[PreTrainedModel], given: dict[str, torch.Tensor], scheme: str, options: dict[str, Any],
    rules: dict[str, str],
) -> str:  # fmt: skip
    """Convert and load in a scheme; return how the outputs compare with those of ``from_pretrained(**options)``.

    ``rules`` keep the experts as they are.
    """
    quantized: list[bool] = []

    def theirs() -> list[torch.Tensor]:
        model = family.from_pretrained(folder / "hf", dtype=torch.bfloat16, **options).eval()
        quantized.append(any(isinstance(module, _LAYERS) for module in model.modules()))
        return outputs(model, given)

    def ours() -> list[torch.Tensor]:
        report = aibit.convert(folder / "hf", folder / "m.aibit", scheme=scheme, tensors=rules, overwrite=True)
        left_out = [key for key in report.dropped_keys if key.rpartition(".")[2] not in WITHOUT_EFFECT]
        if left_out:
            raise ValueError(f"left out {', '.join(left_out)}")
        model = aibit.load_model(folder / "m.aibit")
        if type(model) is not family:
            raise ValueError(f"a {type(model).__name__}")
        quantized.append(any(isinstance(module, _LAYERS) for module in model.modules()))
        return outputs(model, given)

    expected, result = tried(theirs), tried(ours)
    if isinstance(result, str):
        return result + (f" (and in transformers: {expected})" if isinstance(expected, str) else "")
    if isinstance(expected, str):
        return f"runs; not in transformers: {expected}"
    if quantized == [False, True]:
        return "runs; not in transformers: it quantizes no layer of this model"
    return compared(result, expected)


def types() -> list[str]:
    """Return all model types that transformers has a class of models for."""
    return [model_type for model_type in CONFIG_MAPPING_NAMES if classes(model_type)]


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for model_type in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(check(model_type, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
