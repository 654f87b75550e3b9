"""Tables make the header and the front matter."""

from hypothesis import given, settings

from aibit_format.file.reader import File
from tests.support.random_models import calm, models, write
from tools.fixtures import file_builder


@settings(calm, max_examples=30)
@given(models())
def test_header_and_front_matter_come_from_the_tables_alone(model):
    data = write(*model)
    info = File(data).tables
    front = info.front_matter()
    assert info.header(front) + front == data[: file_builder.HEAD + len(front)]
    assert info.front_matter_length == len(front)
