"""Writes ONNX: the graph that a file holds, over weights that lie in the file or beside the graph."""
