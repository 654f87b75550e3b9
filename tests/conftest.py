"""Settings and models that several tests share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import logging
from contextlib import suppress

import pytest

from tests.support.paths import FIXTURES

with suppress(ImportError):  # not there where the core is tested alone
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
    settings.load_profile("untimed")

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line a matmul otherwise


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests that take minutes")


def pytest_collection_modifyitems(config, items):
    skips = {}
    if not config.getoption("--slow"):
        skips["slow"] = pytest.mark.skip(reason="takes minutes; run with --slow")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            skips["gpu"] = pytest.mark.skip(reason="needs a CUDA device; this machine has none")
    for item in items:
        for marker, skip in skips.items():
            if item.get_closest_marker(marker):  # keywords would do for names of folders, too
                item.add_marker(skip)


@pytest.fixture(scope="session")
def fixtures():
    """The folder of models and files that come with the repository."""
    return FIXTURES


@pytest.fixture(params=["compiled", "torch"])
def encoders(request, monkeypatch):
    """Whoever uses this holds for the compiled encoders and decoders, and without them."""
    from aibit_format import native

    if request.param == "torch":
        monkeypatch.setattr(native, "available", False)
    elif not native.available:
        pytest.skip("the compiled encoders are not here: no compiler, or a processor without AVX2")
