"""What is lost when a model gets smaller: ``python -m tools.bench.pruned SRC --calibration FILE ... --text FILE``.

The model and its noise are those of ``frontier``. It is cut by depth, width and heads to several sizes, by scores from
the calibration texts, by weights alone, and at random, with and without fitting what reads less; what is left is
stored in groups of 4 bits. Beside it stands the whole model in groups of 8 to 2 bits: a step down in bits is what a cut
has to beat. Each row has the bytes of the file, the mean Kullback-Leibler divergence from the uncut model in its own
dtype on the held-out text, and the perplexity. With ``--experts`` a small mixture of experts is trained on the
calibration texts first, a token a byte, and cut instead of SRC.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import aibit_format as aibit
from aibit_format.calibrate.statistics import Statistics
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source
from aibit_format.torch.evaluate.judge import Question, reference_logits
from aibit_format.torch.evaluate.operands import operand
from aibit_format.torch.evaluate.perplexity import evaluate
from aibit_format.transform.prune.layers import layer_list
from aibit_format.transform.prune.plan import Plan, Wanted
from aibit_format.transform.prune.widths import layers_of
from tools.bench.frontier import add_texts
from tools.bench.frontier_models import noisy
from tools.bench.machine import machine

BITS = (8, 6, 5, 4, 3, 2)
DENSE = (
    "layers=29", "layers=27", "layers=24", "channels=1408", "channels=1280", "channels=1024", "heads=6", "hidden=540",
    "hidden=504",
)  # fmt: skip
SPARSE = ("experts=7", "experts=6", "experts=4", "channels=128", "layers=3")
_SEED = 7
Row = dict[str, Any]


def scheme(bits: int, wanted: str = "") -> str:
    """Return the scheme of so many bits; hidden sizes here, multiples of 9 heads, are cut into smaller groups."""
    return f"int-group,bits={bits},group={36 if 'hidden' in wanted else 64},zero=code,search=1"


def at_random(source: Path, wanted: str) -> Plan:
    """Return a plan that keeps as many, at random."""
    random, model = np.random.default_rng(_SEED), meta_model_of(open_source(source))
    ((kind, keep),) = Wanted.parse(wanted).counts.items()

    def some(count: int, keep: int) -> np.ndarray:
        return np.sort(random.permutation(count)[:keep])

    if kind == "layers":
        return Plan(layers=some(layer_list(model)[1], keep), how=f"random,{wanted}")
    if kind == "hidden":
        return Plan(hidden=some(model.module.config.get_text_config().hidden_size, keep), how=f"random,{wanted}")
    layers = layers_of(model)
    found = {}
    for number, layer in layers.items():
        if kind == "heads":
            found[number] = some(layer.groups, keep * layer.groups // layer.heads)
        elif kind == "experts":
            found[number] = some(layer.experts, keep)
        else:
            rows = [some(layer.count, keep) for _ in range(max(layer.experts, 1))]
            found[number] = np.stack(rows) if layer.experts else rows[0]
    return Plan(**{kind: found}, how=f"random,{wanted}")  # type: ignore[arg-type]


def trained_experts(texts: Sequence[Path], folder: Path, steps: int) -> Path:
    """Train a mixture of 8 experts on texts, a token a byte, and save it with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

    target = folder / "experts"
    letters = {chr(i): i for i in range(32, 127)} | {"\n": 10, "\t": 9}
    tokenizer = Tokenizer(models.WordLevel({"?": 63, **letters}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    torch.manual_seed(_SEED)
    config = MixtralConfig(
        vocab_size=128, hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=True, output_router_logits=True,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    text = "".join(path.read_text("utf-8") for path in texts)
    ids = torch.tensor([letters.get(letter, 63) for letter in text])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 129, (8,)).tolist()
        batch = torch.stack([ids[start : start + 128] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.config.output_router_logits = False
    model.save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(target)  # noqa: S106
    return target


def cases(source: Path, cuts: Sequence[str], statistics: Statistics) -> Iterator[tuple[str, int, Any, Any]]:
    """Yield what is kept, the bits, how it is chosen, and statistics to choose by, of each row."""
    for bits in BITS:
        yield "all", bits, None, None
    for wanted in cuts:
        yield f"{wanted}, scored", 4, wanted, statistics
        if not wanted.startswith(("layers", "experts", "hidden")):
            yield f"{wanted}, refitted", 4, f"{wanted},refit", statistics
        if wanted.startswith("channels") and cuts is not SPARSE:
            yield f"{wanted}, uneven, refitted", 4, f"{wanted},uneven,refit", statistics
        yield f"{wanted}, weights alone", 4, wanted, None
        yield f"{wanted}, at random", 4, at_random(source, wanted), None


def measured(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield a row for each way to make the model smaller."""
    experts = arguments.experts
    model = trained_experts(arguments.calibration, folder, experts) if experts else noisy(arguments.source, folder)
    statistics = aibit.calibrate(
        model, arguments.calibration, samples=arguments.samples, length=arguments.length,
        hessians=r"(down_proj|o_proj)(\.weight)?$",
    )  # fmt: skip
    question, path = Question(arguments.text.read_text("utf-8"), limit=arguments.tokens), folder / "m.aibit"
    rules = {"embed_tokens": "int8"}
    with reference_logits(str(model), question) as reference:
        for what, bits, wanted, given in cases(model, arguments.cuts or (SPARSE if experts else DENSE), statistics):
            if not re.search(arguments.only, what):
                continue
            if wanted is None:
                report = aibit.convert(model, path, scheme(bits), rules, overwrite=True)
            else:
                report = aibit.prune(
                    model, path, wanted, calibration=given, scheme=scheme(bits, what), tensors=rules, overwrite=True
                )
            with operand(str(path), "cpu", True) as (made, _):
                quality = evaluate(made, reference.text, reference)
            found = quality.divergence
            yield {"what": what, "bits": bits, "bytes": report.file_bytes, "kl": found.mean if found else None,
                   "error": found.mean_error if found else None, "perplexity": quality.perplexity,
                   "reference": quality.reference_perplexity}  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_texts(parser, tokens=1024)
    parser.add_argument("--experts", type=int, default=0, metavar="STEPS", help="train and cut a mixture of experts")
    parser.add_argument("--cuts", nargs="+", metavar="HOW", help="of a model other than SmolLM2-135M: what to cut")
    parser.add_argument("--only", default="", metavar="REGEX", help="measure rows whose name has a match")
    parser.add_argument("--out", type=Path, default=Path("pruned.json"))
    arguments = parser.parse_args(given)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(arguments, Path(folder)):
            rows.append(row)
            size = f"{row['bytes'] / 1e6:9.2f} MB"
            print(f"{row['what']:32} {row['bits']} bits {size} {row['kl']:9.4f} {row['perplexity']:10.3f}", flush=True)
    about = {"source": Path(arguments.source).name, "tokens": arguments.tokens, "samples": arguments.samples}
    arguments.out.write_text(json.dumps({"machine": machine(), **about, "seed": _SEED, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
