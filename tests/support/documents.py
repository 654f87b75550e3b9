"""Put documents into files that the writer would refuse."""

from __future__ import annotations

import pytest

import aibit_format as aibit
from aibit_format.container import documents
from aibit_format.file import writer


def rebuilt_with(source, target, document: str, text: bytes) -> None:
    """Write ``source`` again with another document in it, through a writer kept from checking its contents."""
    with aibit.open(source) as file:
        tensors = {}
        for name in file:
            info = file.info(name)
            tensor = writer.Tensor(name, info.shape, info.dtype, info.scheme, info.alias_of, info.transposed)
            tensors[tensor] = {} if info.alias_of else file.planes(name)
        texts = {name: bytes(data) for name, data in file.documents.items()} | {document: text}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(documents, "check", lambda name, data: None)
            writer.write(target, tensors, file.metadata, texts)
