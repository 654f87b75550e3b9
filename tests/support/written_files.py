"""Make tensors to be written."""

from aibit_format.file.writer import Tensor
from aibit_format.schemes import make

F32, INT8 = make("f32"), make("int8")
A = Tensor("a", (4, 8), "f32", F32)
Q = Tensor("q", (4, 8), "f32", INT8)
