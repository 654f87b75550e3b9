"""Tasks of lm-eval, run by lm-eval itself on a task of our own."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.torch.evaluate.tasks import Tasks

QUESTIONS = [("The list is", [" a list", " zebra"], 0), ("Errors should", [" purple", " be raised"], 1)]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.parametrize("scheme", ["int8", "gguf:q4_0"])
def test_a_task_is_scored_on_a_quantized_model_with_tied_embeddings(scheme, fixtures, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval)")
    lines = (json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS)
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "tiny.yaml").write_text(TASK % (tmp_path / "data.jsonl"))
    original = fixtures / "models" / "tiny-llama"
    aibit.convert(original, tmp_path / "m.aibit", scheme=scheme, tensors={"embed_tokens": scheme})
    model, tokenizer = aibit.load(tmp_path / "m.aibit")
    found = Tasks(["tiny_choice"], str(tmp_path)).run(model, tokenizer)
    assert found["tiny_choice"]["acc,none"] == 1.0
    with pytest.raises(LoadError, match="tasks unknown to lm-eval: tiny_choic;"):
        Tasks(["tiny_choic"], str(tmp_path)).run(model, tokenizer)
