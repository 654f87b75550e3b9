"""Draw random models, and write them, for tests of what holds for every file."""

import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from aibit_format.container import layout
from aibit_format.container.names import TENSOR_CHARACTERS, bad_document_name
from aibit_format.dtypes import DTYPES
from aibit_format.file.writer import Tensor, Writer, plan
from aibit_format.schemes import make
from tools.fixtures import file_builder

calm = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

names = st.text(TENSOR_CHARACTERS.decode(), min_size=1, max_size=20).filter(lambda name: not name.startswith("__"))
names |= st.just("n" * layout.MAX_NAME)
part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,8}", fullmatch=True)
document_names = st.lists(part, min_size=1, max_size=3).map("/".join).filter(lambda name: not bad_document_name(name))
keys = st.from_regex(r"[a-z][a-z0-9_]{0,5}(\.[a-z0-9_]{1,5}){1,3}", fullmatch=True).filter(
    lambda key: not key.startswith(("model.", "source.", "quantization."))
)
text = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=12)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = [integers, floats, st.booleans(), text, st.binary(max_size=12)]
lists = [st.lists(scalar, max_size=5) for scalar in scalars]
lists += [st.lists(integers, max_size=5).map(lambda v: np.array(v, "<i8"))]
lists += [st.lists(floats, min_size=1, max_size=5).map(lambda v: np.array(v, "<f8"))]
metadata = st.dictionaries(keys, st.one_of(*scalars, *lists), max_size=6)
# Ranks 0 to 8, dimensions often 0 and 1; a bulk plane now and then.
shapes = st.lists(st.sampled_from((1, 2, 1, 3, 0, 1, 4, 2)), max_size=layout.MAX_RANK).map(tuple)
shapes |= st.sampled_from([(70, 70), (4096,), (5, 1000), (1, 1, 33, 250)])


@st.composite
def models(draw):
    """(tensors with planes, metadata, documents, alignment)"""
    tensors, content = [], {}
    for name in draw(st.lists(names, max_size=7, unique=True)):
        owners = [tensor for tensor in tensors if tensor.alias_of is None]
        if owners and draw(st.integers(0, 4)) == 0:
            owner = draw(st.sampled_from(owners))
            tensor, planes = Tensor(name, owner.shape, owner.dtype, owner.scheme, owner.name, owner.transposed), {}
        else:
            shape = draw(shapes)
            rows = len(shape) > 1 and draw(st.booleans())
            dtype = draw(st.sampled_from(("f16", "bf16", "f32") if rows else tuple(DTYPES)))
            scheme = make("int8" if rows else dtype)
            tensor = Tensor(name, shape, dtype, scheme, transposed=len(shape) == 2 and draw(st.booleans()))
            array = file_builder.values(dtype, shape, draw(st.integers(0, 9)))
            planes = {role: np.asarray(plane) for role, plane in scheme.encode(array, dtype).items()}
        tensors.append(tensor)
        content[tensor] = planes
    documents = draw(st.dictionaries(document_names, st.binary(max_size=200), max_size=4))
    taken, unique = set(), {}
    for name in sorted(documents):
        folders = {name[:i].lower() for i, character in enumerate(name) if character == "/"}
        if name.lower() not in taken and not folders & {other.lower() for other in unique}:
            taken |= folders | {name.lower()}
            unique[name] = documents[name]
    return content, draw(metadata), unique, draw(st.sampled_from(layout.ALIGNMENTS))


def write(content, values, documents, alignment, jobs=1, backwards=False, front_matter_length=None):
    """The file's bytes, its tensors written by ``jobs`` threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "m.aibit")
        sizes = {name: len(data) for name, data in documents.items()}
        info = plan(content, values, sizes, alignment, front_matter_length)
        with Writer(path, info) as writer, ThreadPoolExecutor(jobs) as pool:
            for tensor, planes in list(content.items())[:: -1 if backwards else 1]:
                if tensor.alias_of is None:
                    pool.submit(writer.write, tensor.name, planes).add_done_callback(Future.result)
            pool.shutdown()
            for name, data in documents.items():
                writer.write_document(name, data)
            writer.commit()
        with open(path, "rb") as file:
            return file.read()
