"""Tools of the repository, run from its root: ``python -m tools.fixtures.make_bad``, and so on."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
