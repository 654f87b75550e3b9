"""What hostile documents and planes would do, and that they are refused before a library or a kernel sees them.

Each kind has its *control*: the same content given to the library itself, with the harm that follows. A control that
stops failing says that the library has learnt to defend itself, and not that our check may go.
"""

from __future__ import annotations

import json
import ntpath
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from transformers.integrations import hub_kernels

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.container import documents
from aibit_format.errors import FormatError, LoadError
from aibit_format.file.reader import File
from aibit_format.hf.config import build_config, model_class
from aibit_format.hf.limits import Limits
from tests.support.hostile_documents import MESSAGES, MODEL, with_document
from tests.support.hostile_documents import good as good
from tools.fixtures import file_builder

EVIL = "raise SystemExit('code from the file has run')\n"


def extracted(good, folder, name, change):
    """A directory as a careless program would make it: the documents, unchecked, and the weights beside them."""
    shutil.copytree(MODEL, folder / "naive")
    value = json.loads((MODEL / name).read_text()) | change
    (folder / "naive" / name).write_text(json.dumps(value))
    return folder / "naive"


def refused(path, code, *uses):
    """Every use of the file is refused with this code."""
    for use in (aibit.load, lambda p: aibit.open(p, verify="full"), *uses):
        with pytest.raises(FormatError) as caught:
            use(path)
        assert caught.value.code == code, use


# Config keys that run or fetch code


@pytest.mark.parametrize(
    ("document", "change", "auto"),
    [
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}, transformers.AutoConfig),
        ("tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}},
         transformers.AutoTokenizer),
    ],
    ids=["config", "tokenizer"],
)  # fmt: skip
def test_code_beside_the_config(document, change, auto, good, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = extracted(good, tmp_path, document, change)
    (folder / "evil.py").write_text(EVIL)
    with pytest.raises(SystemExit, match="code from the file has run"):  # control: a user who trusts
        auto.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    refused(with_document(good, tmp_path, document, change), "AIB-E706")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_from_a_hub_named_in_the_config(key, good, tmp_path, monkeypatch):
    asked = []

    def get_kernel(repository, **options):
        asked.append(repository)
        raise RuntimeError("asked the hub")

    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    change = {key: "evil-org/evil-kernel"}
    folder = extracted(good, tmp_path, "config.json", change)
    with pytest.raises(ValueError, match="asked the hub"):  # control: no flag is needed for this
        transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert asked == ["evil-org/evil-kernel"]
    refused(with_document(good, tmp_path, "config.json", change), "AIB-E706")
    assert len(asked) == 1


@pytest.mark.parametrize("key", sorted(documents.FORBIDDEN_KEYS))
@pytest.mark.parametrize("place", [lambda v: v, lambda v: {"text_config": v}, lambda v: {"a": [{"b": [v]}]}])
def test_no_key_that_acts_is_taken_at_any_depth_of_any_document(key, place):
    for name in ("config.json", "generation_config.json", "CONFIG.JSON", "1_Pooling/config.json", "notes/x.Json"):
        with pytest.raises(FormatError, match="AIB-E706"):
            documents.check(name, json.dumps(place({key: "evil"})).encode())
        documents.check(name, json.dumps(place({key: None})).encode())  # null says that there is none


def test_a_key_in_escapes_is_the_same_key():
    with pytest.raises(FormatError, match="AIB-E706"):
        documents.check("config.json", b'{"\\u0061uto_map": {"AutoConfig": "evil.Config"}}')


def test_a_key_twice_would_mean_one_thing_to_us_and_another_to_others():
    text = b'{"auto_map": {"AutoConfig": "evil.Config"}, "auto_map": null}'
    assert json.loads(text)["auto_map"] is None  # control: the last one counts here; the first one in other languages
    with pytest.raises(FormatError, match=r"repeated.*AIB-E705"):
        documents.check("config.json", text)


def test_a_name_in_capitals_is_the_same_file_to_some_systems():
    for name in ("Config.json", "config.JSON"):
        with pytest.raises(FormatError, match="AIB-E706"):
            documents.check(name, b'{"quantization_config": {"quant_method": "evil"}}')


def test_extracting_does_not_hand_on_what_loading_refuses(good, tmp_path, capsys):
    path = with_document(good, tmp_path, "config.json", {"auto_map": {"AutoConfig": "evil.Config"}})
    assert main(["extract", str(path), "-o", str(tmp_path / "out")]) == 3
    assert "AIB-E706" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["extract", str(path), "config.json", "-o", "-"]) == 3
    assert main(["extract", str(path), "LICENSE", "-o", str(tmp_path / "out")]) == 0


# Names of files in documents, and documents with path names


def test_a_tokenizer_config_that_names_a_file_elsewhere(good, tmp_path):
    """transformers joins the name to the folder, wherever that leads."""
    secret = tmp_path / "tokenizer.1.0.json"
    shutil.copy(MODEL / "tokenizer.json", secret)
    change = {"fast_tokenizer_files": ["../tokenizer.1.0.json"]}
    folder = extracted(good, tmp_path, "tokenizer_config.json", change)
    os.remove(folder / "tokenizer.json")
    assert len(transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)) > 1000  # control
    refused(with_document(good, tmp_path, "tokenizer_config.json", change), "AIB-E706")


@pytest.mark.parametrize("key", sorted(documents.FORBIDDEN_IN["tokenizer_config.json"]))
def test_keys_that_name_files_are_refused_and_left_out(key):
    text = json.dumps({"bos_token": "<s>", key: "/etc/passwd"}).encode()
    with pytest.raises(FormatError, match="AIB-E706"):
        documents.check("tokenizer_config.json", text)
    kept, dropped = documents.clean("tokenizer_config.json", text)
    assert json.loads(kept) == {"bos_token": "<s>"} and dropped == [f"tokenizer_config.json:{key}"]
    documents.check("config.json", text)  # means nothing there


PATHS = [
    "../outside", "a/../../outside", "/outside", "..", "a/..", "./outside", "a//outside", "~/outside", ".outside",
    "a\\..\\outside", "C:outside", "C:/outside", "\\\\host\\outside", "nul", "a/CON.txt", "com1", "outside.",
    "a/b./c", "outside ", "-rf",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_a_document_named_like_a_path_is_refused_on_opening(name):
    bad = file_builder.renamed("document", 0, name.encode())(file_builder.good())
    with pytest.raises(FormatError) as caught:
        File(bad)
    assert caught.value.code == "AIB-E701"


def test_what_such_names_would_do(tmp_path):
    """Controls: where a program that joins and writes would write."""
    (tmp_path / "out").mkdir()
    for name in ("../outside", str(tmp_path / "absolute")):
        with open(os.path.join(tmp_path / "out", name), "w") as out:
            out.write("written")
    assert sorted(os.listdir(tmp_path)) == ["absolute", "out", "outside"] and not os.listdir(tmp_path / "out")
    for name in ("C:/outside", "\\\\host\\outside", "C:outside"):
        assert not ntpath.join("D:\\out", name).startswith("D:\\out")
    assert ntpath.normpath(ntpath.join("D:\\out", "a\\..\\..\\outside")) == "D:\\outside"
    for name in ("nul", "a/CON.txt", "com1"):
        assert pathlib.PureWindowsPath(name).is_reserved()


def test_nothing_is_written_through_a_link(good, tmp_path, capsys):
    path = with_document(good, tmp_path, "notes/x.txt", b"evil")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out" / "notes")
    (tmp_path / "out" / "LICENSE").symlink_to(tmp_path / "elsewhere" / "LICENSE")
    for name in ("notes/x.txt", "LICENSE"):
        assert main(["extract", str(path), name, "-o", str(tmp_path / "out")]) == 1
    assert not os.listdir(tmp_path / "elsewhere")
    with open(tmp_path / "out" / "notes" / "x.txt", "w") as out:  # control
        out.write("evil")
    assert os.listdir(tmp_path / "elsewhere") == ["x.txt"]


# JSON bombs


@pytest.fixture
def usual_recursion():
    """Python's own limit, which a library may have raised."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("usual_recursion")
def test_nesting_that_ends_other_readers():
    with pytest.raises(RecursionError):  # control: an exception that few expect from a parser
        json.loads("[" * 100_000)
    deep = "[" * 500 + "]" * 500
    with pytest.raises(RecursionError):  # control: it parses, and ends the program that walks it
        transformers.LlamaConfig.from_dict({"made_up": json.loads(deep)}).to_json_string()
    for text in ("[" * 100_000, "[" * 100_000 + "]" * 100_000, deep, '{"a":' * 100 + "1" + "}" * 100):
        with pytest.raises(FormatError, match="AIB-E705"):
            documents.check("config.json", text.encode())


def test_a_number_of_a_million_digits():
    program = "import json, sys; sys.set_int_max_str_digits(0); print(json.loads('9' * 20_000) % 10)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "9\n"  # control: without Python's own limit it is made, in time that grows with the square
    program = """
import sys
sys.set_int_max_str_digits(0)
from aibit_format.container import documents
try:
    documents.check("config.json", b"9" * 10 ** 6)
except Exception as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "AIB-E705\n", done.stderr


@pytest.mark.parametrize("text", [b'{"a": NaN}', b'{"a": -Infinity}', b"\xef\xbb\xbf{}", b'{"a": 1} {}', b"'a'", b""])
def test_what_python_or_others_take_for_json_and_is_none(text):
    with pytest.raises(FormatError, match="AIB-E705"):
        documents.check("config.json", text)


# Numbers in a config


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 10**9}, {"max_position_embeddings": 10**12}], ids=lambda change: next(iter(change))
)
def test_a_config_of_absurd_size_is_refused_before_a_model_is_built(change, good, tmp_path):
    # No control: it would take all memory there is.
    with pytest.raises(LoadError, match=next(iter(change))):
        aibit.load_model(with_document(good, tmp_path, "config.json", change))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 64}, {"vocab_size": 1 << 40}])
def test_a_config_that_contradicts_the_tensors_is_refused(change, good, tmp_path):
    with pytest.raises(LoadError):
        aibit.load_model(with_document(good, tmp_path, "config.json", change))


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"model_type"'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_is_no_object_is_refused(name, text, good, tmp_path):
    with pytest.raises(LoadError, match="no JSON object"):
        aibit.load_model(with_document(good, tmp_path, name, text))


@pytest.mark.parametrize(
    "change", [{"hidden_size": "128"}, {"hidden_size": -1}, {"num_attention_heads": 0}, {"num_hidden_layers": []},
               {"rms_norm_eps": {}}, {"rope_parameters": {"rope_type": "evil"}}, {"hidden_act": "evil"},
               {"hidden_act": "__import__"}, {"torch_dtype": "load", "dtype": None}, {"model_type": "os"}],
    ids=str,
)  # fmt: skip
def test_a_config_of_nonsense_is_refused_by_its_name(change, good, tmp_path):
    with pytest.raises(LoadError, match=r"config\.json"):
        aibit.load_model(with_document(good, tmp_path, "config.json", change))


def test_keys_that_name_files_reach_no_constructor(good, tmp_path):
    change = {"name_or_path": "evil/evil", "transformers_weights": "elsewhere"}
    made = transformers.LlamaConfig.from_dict(change)
    assert made.transformers_weights == "elsewhere"  # control: set as an attribute, unasked
    model = aibit.load_model(with_document(good, tmp_path, "config.json", change))
    assert not hasattr(model.config, "transformers_weights")
    assert model.config.name_or_path != "evil/evil"


def test_an_architecture_is_no_name_to_be_looked_up():
    names = ("pipeline", "LlamaConfig", "AutoModel", "os", "__loader__", "T5Model", "LlamaForCausalLM.generate", "")
    assert callable(getattr(transformers, names[0]))  # control: what a program that gets attributes by name would call
    config = build_config({"model_type": "llama"}, Limits(1, 1))
    for name in names:
        with pytest.raises(LoadError, match="is not one of"):
            model_class(config, name)


# Scales that lie


def test_one_scale_for_sixty_four_blocks_would_be_read_beyond_its_end():
    """The kernel takes what lies behind: here 1000 for every block but the first."""
    import bitsandbytes.functional as bnb

    codes, state = bnb.quantize_4bit(torch.randn(64, 64), blocksize=64, quant_type="nf4")
    behind = torch.full((64,), 1000.0)
    behind[0] = state.absmax[0]
    state.absmax = behind[:1]
    found = bnb.dequantize_4bit(codes, state)
    assert state.absmax.numel() == 1 and found[0].abs().max() < 10 and found[1:].abs().max() == 1000  # control
    tensors = [("w", "nf4", "f32", (64, 64), None)]
    shorter = file_builder.put("plane", 1, length=4)(file_builder.good(tensors, {}, {}))
    with pytest.raises(FormatError) as caught:
        File(shorter)
    assert (caught.value.code, caught.value.plane) == ("AIB-E405", "absmax")
    assert (caught.value.expected, caught.value.found) == (256, 4)


def test_one_row_scale_would_be_taken_for_all_rows():
    codes, scale = torch.full((64, 32), 127, dtype=torch.int8), torch.arange(1.0, 65)
    right, wrong = (torch.ops.bitsandbytes.int8_vectorwise_dequant(codes, s) for s in (scale, scale[:1]))
    assert not torch.equal(right, wrong)  # control: no error, other weights
    with pytest.raises(FormatError, match="AIB-E405"):
        File(file_builder.put_plane("quant", "row_absmax", length=4)(file_builder.good()))


@pytest.mark.parametrize(("scheme", "role"), [("int8", "row_absmax"), ("nf4", "absmax")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_scale_that_is_no_size(scheme, role, value, tmp_path, monkeypatch):
    aibit.convert(MODEL, tmp_path / "m.aibit", scheme=scheme)
    name = "model.layers.0.self_attn.v_proj.weight"
    with aibit.open(tmp_path / "m.aibit") as file:
        plane = next(p for p in file.info(name).planes if p.role == role)
    data = bytearray((tmp_path / "m.aibit").read_bytes())
    data[plane.offset : plane.offset + 4] = np.float32(value).tobytes()
    (tmp_path / "m.aibit").write_bytes(file_builder.reseal(data, leaves=True))
    with pytest.raises(FormatError) as caught:
        aibit.load_model(tmp_path / "m.aibit")
    assert (caught.value.code, caught.value.tensor, caught.value.plane) == ("AIB-E502", name, role)
    # Control: without the check it loads, and one scale of a layer is in everything that is said.
    monkeypatch.setattr(File, "check_values", lambda *_: None)
    model = aibit.load_model(tmp_path / "m.aibit")
    with torch.no_grad():
        logits = model(torch.arange(1, 9)[None]).logits
    reference = aibit.load_model(aibit.open(_converted(tmp_path, scheme)))
    with torch.no_grad():
        right = reference(torch.arange(1, 9)[None]).logits
    assert right.isfinite().all() and not torch.equal(logits, right)
    if np.isnan(value):
        assert logits[0, -1].isnan().all()


def _converted(folder, scheme):
    aibit.convert(MODEL, folder / "right.aibit", scheme=scheme)
    return folder / "right.aibit"


# The network

CUT_OFF = """
import sys
tried = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        tried.append((event, arguments[-1]))
        raise OSError(f"the network was asked for: {event}")
sys.addaudithook(watch)
"""


def cut_off(program, *, isolated=False):
    """Run a program that cannot reach a network; with ``isolated``, in a network namespace that has none."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    command = [*(["unshare", "-rn"] if isolated else []), sys.executable, "-c", CUT_OFF + program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_watch_on_the_network_sees_what_it_must():
    done = cut_off("""
import urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:9/")
except OSError:
    pass
print(tried[0][0])
""")
    assert done.stdout == "socket.connect\n" or done.stdout == "socket.getaddrinfo\n", done.stderr


WHOLE_WAY = """
import aibit_format as aibit
aibit.convert({source!r}, {target!r})
aibit.open({target!r}, verify="full")
for path in ({target!r}, {evil!r}):
    model, tokenizer = aibit.load(path)
batch = tokenizer.apply_chat_template({messages!r}, add_generation_prompt=True, return_tensors="pt", return_dict=True)
ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
assert ids.shape[1] > batch["input_ids"].shape[1] and tokenizer.decode(ids[0])
assert tried == [], tried
"""


@pytest.mark.parametrize("isolated", [False, True], ids=["watched", "without-any"])
def test_no_network_is_touched_by_converting_loading_generating_and_tokenizing(isolated, good, tmp_path):
    """Without the variables that tell Hugging Face's libraries to stay offline; one of the files names repositories."""
    if isolated and (not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"]).returncode):
        pytest.skip("no network namespace can be made here")
    change = {"_name_or_path": "evil-org/evil-model", "base_model_name_or_path": "evil-org/evil-base"}
    evil = with_document(good, tmp_path, "config.json", change)
    program = WHOLE_WAY.format(source=str(MODEL), target=str(tmp_path / "m.aibit"), evil=str(evil), messages=MESSAGES)
    done = cut_off(program, isolated=isolated)
    assert done.returncode == 0, done.stderr[-3000:]
