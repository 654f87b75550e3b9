"""Names that a file may hold, and names that it may not."""

import pytest

from aibit_format.container.names import bad_document_name, bad_key, bad_scheme_name, bad_tensor_name

GOOD = {
    bad_tensor_name: ["w", "model.layers.0.mlp.up_proj.weight", "a/b:c[0]", "n" * 255, "_private"],
    bad_document_name: ["config.json", "a/b/c.txt", "_a", "console.log", "d" * 255, "1+2-3"],
    bad_key: ["model.parameters", "a.b_c.d0", "x.0"],
    bad_scheme_name: ["int8", "fp8-e4m3", "gguf:q4_0", "x-mine.own"],
}
BAD = {
    bad_tensor_name: ["", "n" * 256, "a b", "a'", 'a"', "a\\b", "caf\u00e9", "a\0", "a\n", "__metadata__", "a\ud800"],
    bad_document_name: [
        "", "d" * 256, "/etc/passwd", "../a", "a/../b", "a/./b", "a//b", "a/", ".hidden", "-option", "a b", "c:\\a",
        "nul", "a/CON.txt", "lpt1", "a.", "a./b", "caf\u00e9",
    ],
    bad_key: ["", "a", "A.b", "a.B", "a..b", ".a", "a.", "0.a", "a.b-c", "a." + "b" * 254],
    bad_scheme_name: ["", "Int8", "int8-", "-int8", "8int", "int8--x", "int 8", "s" * 256],
}  # fmt: skip


@pytest.mark.parametrize(("bad", "name"), [(bad, name) for bad, names in GOOD.items() for name in names])
def test_a_good_name_has_nothing_wrong(bad, name):
    assert bad(name) is None


@pytest.mark.parametrize(("bad", "name"), [(bad, name) for bad, names in BAD.items() for name in names])
def test_a_bad_name_gets_a_reason(bad, name):
    assert bad(name)
