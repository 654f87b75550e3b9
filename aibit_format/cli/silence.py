"""Keeps messages of other libraries off the terminal."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_hub() -> None:
    """Turn off the bars and the telemetry of ``huggingface_hub``, before it is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def quiet_libraries() -> None:
    """Turn off the libraries' advice, warnings and requests to the Hugging Face Hub, before they are imported.

    What a command names on a hub is downloaded before (``arguments.local``); no library has to ask for more.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # bitsandbytes logs a warning at every product whose input it casts.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|bitsandbytes")
