"""The command line as a person uses it: results, messages, exit status."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys
import warnings

import torch

from aibit_format.cli import main
from aibit_format.cli.output import Terminal, emit, terminals
from aibit_format.errors import FormatError, LoadError, Problem
from tests.support.command_models import model as model
from tests.support.command_models import shell
from tests.support.paths import FIXTURES


def test_output_that_nobody_reads_is_no_error(model):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "aibit_format", "inspect", str(model / "m.aibit"), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == "" and done.returncode == 0


def test_verbose_shows_the_traceback(tmp_path):
    path = pathlib.Path(tmp_path, "x.aibit")
    path.write_text("nothing of the kind, but long enough to be looked at")
    assert "Traceback" not in shell("inspect", path).stderr
    assert "Traceback" in shell("inspect", path, "-v").stderr


EVIL = "\x1b]0;evil\x07\x1b[2J\r\u202eno"


def test_what_a_file_says_is_shown_and_not_sent(capsys):
    with terminals():
        print(EVIL, "fine: \u00e9 \u4e2d\u3000\u6587 \U0001f468\u200d\U0001f469 tab\t")  # noqa: T201 - what is tested
        print(EVIL, file=sys.stderr)  # noqa: T201
        warnings.warn(EVIL, stacklevel=1)
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not set("\x1b\x07\r\u202e") & set(text) and r"\x1b]0;evil\x07\x1b[2J\r\u202eno" in text
    assert out.endswith("fine: \u00e9 \u4e2d\u3000\u6587 \U0001f468\u200d\U0001f469 tab\t\n")


def test_a_character_that_the_encoding_lacks_is_shown(monkeypatch):
    raw = io.BytesIO()
    stream = Terminal(io.TextIOWrapper(raw, "ascii"))
    stream.write("\u00e9\udc80")
    stream.flush()
    assert raw.getvalue() == rb"\xe9\udc80"


def test_errors_of_any_kind_are_one_line_and_shown(capsys, monkeypatch, tmp_path):
    for error in (LoadError(EVIL), OSError(5, EVIL, EVIL), ValueError(f"a\nb{EVIL}"), FormatError(Problem("X", EVIL))):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr("aibit_format.cli.inspect.describe", fail)
        for arguments in (["inspect", "x"], ["inspect", "x", "-v"]):
            assert main(arguments) in (1, 3)
            err = capsys.readouterr().err
            assert not set("\x1b\x07\r\u202e") & set(err) and "evil" in err
            assert err.count("\n") == 1 or "-v" in arguments


def test_tokens_are_shown_as_they_stream(capsys):
    from transformers import AutoTokenizer, TextStreamer

    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "models" / "tiny-llama")
    with terminals():
        streamer = TextStreamer(tokenizer)
        for token in tokenizer(EVIL)["input_ids"]:
            streamer.put(torch.tensor([token]))
        streamer.end()
    assert not set("\x1b\x07\r\u202e") & set(capsys.readouterr().out)


def test_json_stays_json(capsys):
    with terminals():
        emit({"a": EVIL + "\x7f"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": EVIL + "\x7f"} and out.replace("\n", "").isprintable()
