"""Measure one job in this process, for ``probe.started``, and print the result as a line of JSON."""

from __future__ import annotations

import json
import os
import sys

from tools.bench.jobs import JOBS
from tools.bench.probe import say


def main() -> None:
    """Run the job named by the first argument with the keyword arguments that the second gives as JSON."""
    job, arguments = sys.argv[1], json.loads(sys.argv[2])
    say(JOBS[job](**arguments))
    sys.stdout.flush()
    os._exit(0)  # taking torch and its threads down takes a second that nobody measures


if __name__ == "__main__":
    main()
