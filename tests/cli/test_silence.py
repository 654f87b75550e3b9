"""Messages of libraries stay off the terminal."""

import logging
import os
import subprocess
import sys
import warnings

from aibit_format.cli.silence import quiet_libraries
from tests.support.paths import ROOT


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with warnings.catch_warnings():
        quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert logging.getLogger("bitsandbytes").level == logging.ERROR


def test_warnings_of_libraries_are_dropped_and_others_are_not():
    program = (
        "import warnings; from aibit_format.cli.silence import quiet_libraries; quiet_libraries()\n"
        "for module in ('torch', 'transformers', 'bitsandbytes', 'mine'):\n"
        "    warnings.warn_explicit(f'by {module}', UserWarning, 'x.py', 1, module)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "by mine" in result.stderr and result.stderr.count("UserWarning") == 1
