"""Find node and what comes with it."""

import os
import shutil
import subprocess
import sys

import pytest

# Programs beside the interpreter, where tools/test puts node if the machine has none, and then those of the machine.
PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


def found(name):
    return shutil.which(name, path=PATH)


def require(*names, what):
    """Skip the test where a program is missing, but not in CI."""
    missing = [name for name in names if not found(name)]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"{' and '.join(missing)} not found: {what} is not tried here")


def run(*command, cwd=None, timeout=300):
    environment = os.environ | {"PATH": PATH}
    return subprocess.run(
        [found(command[0]), *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
