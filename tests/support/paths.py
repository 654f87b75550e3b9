"""Name the folders that tests read from."""

from tools import ROOT

FIXTURES = ROOT / "fixtures"

__all__ = ["FIXTURES", "ROOT"]
