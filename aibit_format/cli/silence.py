"""Keeping the libraries' own messages off the terminal, before they are imported."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """No hub look-ups, no advice, no progress bars but ours."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # bitsandbytes says at every product that it casts its input.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|bitsandbytes")
