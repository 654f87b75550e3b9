"""What a calibration takes of memory does not grow with the number of blocks."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
import transformers

from tests.support import calibrated

CHILD = textwrap.dedent(
    """
    import json, sys
    from aibit_format.calibrate.calibrate import calibrate

    def anonymous():
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

    def peak(folder):
        before, seen = anonymous(), []
        found = calibrate(folder, [sys.argv[3]], samples=2, length=24,
                          on_progress=lambda done, total, name: seen.append(anonymous()))
        assert found.about.streamed
        return max(seen) - before

    peak(sys.argv[1])  # whatever is imported or allocated once is there now
    print(json.dumps([peak(sys.argv[1]), peak(sys.argv[2])]))
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_a_block(tmp_path):
    (tmp_path / "t.txt").write_text(calibrated.TEXT)
    size = {"vocab_size": 160, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    for name, count in (("few", 2), ("many", 12)):
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, num_hidden_layers=count))
        model = model.to_empty(device="cpu").requires_grad_(False)
        for value in model.state_dict().values():
            value.fill_(0.01)
        model.save_pretrained(tmp_path / name)
        calibrated.add_tokenizer(tmp_path / name)
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in ("few", "many", "t.txt"))]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = json.loads(found.stdout)
    block = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    assert many < few + 1.5 * block < 5 * block  # all ten blocks more have 168 MB
