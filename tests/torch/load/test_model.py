"""``load`` and ``load_model`` import what builds a model when they are called."""

from __future__ import annotations

import subprocess
import sys

import aibit_format as aibit

FIXTURE = "fixtures/models/tiny-llama"


def test_the_functions_are_there_before_the_libraries():
    program = (
        "import sys, aibit_format as aibit\n"
        "assert callable(aibit.load_model) and callable(aibit.load)\n"
        "print([name for name in ('transformers', 'bitsandbytes') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "[]\n", done.stderr


def test_both_give_the_same_model(tmp_path):
    aibit.convert(FIXTURE, tmp_path / "m.aibit")
    model, tokenizer = aibit.load(tmp_path / "m.aibit")
    again = aibit.load_model(tmp_path / "m.aibit")
    assert type(model) is type(again) and model.state_dict().keys() == again.state_dict().keys()
    assert tokenizer("If the file")["input_ids"]
