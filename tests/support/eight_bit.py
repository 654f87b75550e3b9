"""Load models as transformers and bitsandbytes do."""

from __future__ import annotations

import transformers


def eight_bit(family, folder):
    """What transformers and bitsandbytes make of the same checkpoint."""
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return family.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"}).eval()
