"""Train the two tiny language models that aibit is tested with, laid out like hub checkpoints.

    python tools/train_fixtures.py                    # both models, some ten minutes each
    python tools/train_fixtures.py llama --steps 50   # a quick try of one of them

They are made of nothing but the Python that runs this: the language reference in
`pydoc_data.topics` and the docstrings of the standard library, read as source, never imported.
Below --out it writes

    tiny-gpt2/    GPT-2, tied head, float16, one file
    tiny-llama/   Llama, grouped-query attention, untied head, bfloat16, two shards, chat template
    heldout.txt   text that neither model saw; each README.md tells the perplexity on it

Tests want trained weights, because a damaged quantization of random weights goes unnoticed, while
one of these shows in the held-out perplexity at once. Other Python versions have other text, so
retrain both models together and keep the heldout.txt of that run.
"""

import argparse
import ast
import math
import platform
import sys
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

# The parts of one document, each under the name it describes: a topic, a module, a class...
Document = dict[str, str]

SEED = 0
CONTEXT = 256
VOCAB_SIZE = 1024
BATCH = 4
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
HELDOUT_EVERY = 20
EXCERPT_CHARACTERS = 1400  # of each held-out document; keeps heldout.txt below 40 KB
ANSWER_CHARACTERS = 300
PROMPT = "Return the "


@dataclass(frozen=True)
class Recipe:
    """All that differs between the two models."""

    config: PreTrainedConfig
    dtype: torch.dtype
    special_tokens: list[str]  # in the order of their ids, which `config` refers to
    chat_template: str | None = None
    max_shard_size: str = "1GB"


CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ("user", "assistant") %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {{- "<|" + message.role + "|>" + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|assistant|>" }}
{%- endif %}
"""

RECIPES = {
    "gpt2": Recipe(
        GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.06,
            bos_token_id=0,
            eos_token_id=0,
        ),
        dtype=torch.float16,
        special_tokens=["<|endoftext|>"],
    ),
    "llama": Recipe(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=CONTEXT,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            initializer_range=0.06,
            bos_token_id=0,
            eos_token_id=1,
        ),
        dtype=torch.bfloat16,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        max_shard_size="1200KB",
    ),
}

LICENSE = """\
The weights and the tokenizer in this directory: Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

The text they were trained on, and ../heldout.txt, is derived from the CPython documentation and
docstrings, Copyright (c) 2001 Python Software Foundation; All Rights Reserved, under the PSF
License Agreement (https://docs.python.org/3/license.html).
"""

MODEL_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# tiny-{name}

A test fixture of aibit: a {architecture} of {parameters:,} parameters, stored as {dtype}, that is
really trained, though too small to make sense.

- Text: the language reference (`pydoc_data.topics`) and the docstrings of the standard library of
  Python {python}, {tokens:,} tokens.
- Made by: `python tools/train_fixtures.py {name} --steps {steps} --threads {threads}`

Perplexity per token on `../heldout.txt`, encoded as one text without special tokens and cut into
whole windows of 256 tokens, in each of which all tokens but the first are predicted:

| uniform | unigram | this model, computed in float32 |
|--------:|--------:|--------------------------------:|
| {uniform:.1f} | {unigram:.1f} | {perplexity:.2f} |

Greedy continuation of "{prompt}":

```text
{sample}
```
"""


def named_docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, docstring) of `node` and of all inside it, in source order."""
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, (ast.Module, *definitions)) and (docstring := ast.get_docstring(node)):
        yield name, docstring
    for child in ast.iter_child_nodes(node):
        is_named = isinstance(child, definitions)
        yield from named_docstrings(child, f"{name}.{child.name}" if is_named else name)


def read_documents() -> list[Document]:
    """Read the topics and modules in an order that only the Python version decides."""
    documents = [{title: text} for title, text in sorted(topics.items())]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        # Installed packages and per-platform files are not among the standard module names.
        if parts[0] in sys.stdlib_module_names and not {"test", "tests", "idle_test"} & {*parts}:
            with tokenize.open(path) as source:
                tree = ast.parse(source.read())
            module = ".".join(parts).removesuffix(".__init__")
            documents.append(dict(named_docstrings(tree, module)))
    return [document for document in documents if document]


def without_repeats(document: Document, seen: set[str]) -> Document:
    """Drop the paragraphs that are in `seen`, and add the others to it.

    Topics include one another and modules share docstrings: with a split by document alone, much
    of the held-out text would also be in the training text.
    """
    fresh_parts = {}
    for name, text in document.items():
        fresh = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                fresh.append(paragraph)
        if fresh:
            fresh_parts[name] = "\n\n".join(fresh)
    return fresh_parts


def as_text(document: Document) -> str:
    return "\n\n".join(document.values())


def split_documents(documents: list[Document]) -> tuple[list[Document], str]:
    """Return the training documents, and one text of the starts of the held-out ones."""
    seen: set[str] = set()
    heldout = [without_repeats(document, seen) for document in documents[::HELDOUT_EVERY]]
    training = [without_repeats(d, seen) for i, d in enumerate(documents) if i % HELDOUT_EVERY]
    whole_lines = [as_text(d)[:EXCERPT_CHARACTERS].rpartition("\n")[0] for d in heldout]
    return [d for d in training if d], "\n\n".join(filter(None, whole_lines)) + "\n"


def train_tokenizer(recipe: Recipe, documents: list[Document]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which takes any text and gives it back unchanged."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=recipe.special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(map(as_text, documents), trainer)
    bos = recipe.special_tokens[recipe.config.bos_token_id]
    eos = recipe.special_tokens[recipe.config.eos_token_id]
    if bos != eos:  # the convention of Llama; GPT-2 puts its one special token only after a text
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=[t for t in recipe.special_tokens if t not in (bos, eos)],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = recipe.chat_template
    return tokenizer


def chats(document: Document) -> Iterator[list[dict[str, str]]]:
    """Turn short descriptions of public names into chats, to teach the chat tokens their place."""
    for name, text in document.items():
        answer = " ".join(text.split("\n\n")[0].split())
        if answer.endswith(".") and len(answer) <= ANSWER_CHARACTERS and "._" not in name:
            question = {"role": "user", "content": f"What is {name}?"}
            yield [question, {"role": "assistant", "content": answer}]


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> torch.Tensor:
    """Lay the training text end to end, with the special tokens the model will meet in use."""
    stream: list[int] = []
    for document in documents:
        stream += [*tokenizer.encode(as_text(document), verbose=False), tokenizer.eos_token_id]
        if tokenizer.chat_template:
            for chat in chats(document):
                stream += encode(tokenizer, tokenizer.apply_chat_template(chat, tokenize=False))
    return torch.tensor(stream)


def next_token_loss(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of all tokens in `windows` but the first of each."""
    logits = model(windows).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def train(model: PreTrainedModel, stream: torch.Tensor, steps: int) -> None:
    """Train on windows from anywhere in the stream: linear warmup, then cosine decay."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    started, recent_losses = time.monotonic(), []
    for step in range(1, steps + 1):
        starts = torch.randint(len(stream) - CONTEXT + 1, (BATCH,)).tolist()
        windows = torch.stack([stream[start : start + CONTEXT] for start in starts])
        loss = next_token_loss(model, windows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent_losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            mean_loss = sum(recent_losses) / len(recent_losses)
            seconds = time.monotonic() - started
            print(f"step {step:5}/{steps}  loss {mean_loss:.3f}  {seconds:4.0f} s", flush=True)
            recent_losses.clear()


def unigram_perplexity(stream: torch.Tensor, windows: torch.Tensor) -> float:
    """Return what a model reaches that knows only how frequent each token is."""
    counts = torch.bincount(stream, minlength=VOCAB_SIZE) + 1
    return (counts / counts.sum())[windows[:, 1:]].log().mean().neg().exp().item()


@torch.inference_mode()
def describe(
    directory: Path, tokenizer: PreTrainedTokenizerFast, stream: torch.Tensor, heldout: str
) -> dict[str, object]:
    """Measure the model as it was stored, not as it left training in full precision."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.tensor(encode(tokenizer, heldout))
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=60, pad_token_id=tokenizer.eos_token_id)
    return {
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "tokens": len(stream),
        "uniform": float(VOCAB_SIZE),
        "unigram": unigram_perplexity(stream, windows),
        "perplexity": next_token_loss(model, windows).exp().item(),
        "prompt": PROMPT,
        "sample": tokenizer.decode(output[0], skip_special_tokens=True).rstrip(),
    }


def make_model(name: str, training: list[Document], heldout: str, out: Path, steps: int) -> None:
    """Train one model and write its directory."""
    print(f"training tiny-{name}")
    recipe, directory = RECIPES[name], out / f"tiny-{name}"
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(recipe, training)
    stream = token_stream(tokenizer, training)
    model = AutoModelForCausalLM.from_config(recipe.config)
    train(model, stream, steps)

    model.to(recipe.dtype).save_pretrained(directory, max_shard_size=recipe.max_shard_size)
    tokenizer.save_pretrained(directory)
    card = MODEL_CARD.format(
        name=name,
        dtype=str(recipe.dtype).removeprefix("torch."),
        python=platform.python_version(),
        steps=steps,
        threads=torch.get_num_threads(),
        **describe(directory, tokenizer, stream, heldout),
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    (directory / "LICENSE").write_text(LICENSE, encoding="utf-8")
    print(card[card.index("Perplexity") :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(RECIPES)}; all")
    parser.add_argument("--out", type=Path, default=Path("fixtures/models"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(RECIPES):
        parser.error(f"no such model: {', '.join(sorted(unknown))}")

    torch.set_num_threads(arguments.threads)
    training, heldout = split_documents(read_documents())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "heldout.txt").write_text(heldout, encoding="utf-8")
    for name in arguments.models or RECIPES:
        make_model(name, training, heldout, arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
