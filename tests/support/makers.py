"""Write models in makers' own form: the inverse of transformers' scripts of conversion, and Meta's own arithmetic."""

from __future__ import annotations

import base64
import json
import pathlib
import re
import struct
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

# transformers' names -> makers'.
NAMES = {
    r"model(?:\.language_model)?\.embed_tokens": "tok_embeddings", r"model(?:\.language_model)?\.norm": "norm",
    "lm_head": "output",
    r"model(?:\.language_model)?\.layers\.(\d+)\.input_layernorm": r"layers.\1.attention_norm",
    r"model(?:\.language_model)?\.layers\.(\d+)\.post_attention_layernorm": r"layers.\1.ffn_norm",
    r"model(?:\.language_model)?\.layers\.(\d+)\.self_attn\.(.)_proj": r"layers.\1.attention.w\2",
    r"model(?:\.language_model)?\.layers\.(\d+)\.mlp\.gate_proj": r"layers.\1.feed_forward.w1",
    r"model(?:\.language_model)?\.layers\.(\d+)\.mlp\.down_proj": r"layers.\1.feed_forward.w2",
    r"model(?:\.language_model)?\.layers\.(\d+)\.mlp\.up_proj": r"layers.\1.feed_forward.w3",
    r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.gate": r"layers.\1.feed_forward.gate",
    r"model\.vision_tower\.(ln_pre|patch_conv)": r"vision_encoder.\1",
    r"model\.vision_tower\.(transformer\.layers\.\d+\.(?:attention|ffn)_norm)": r"vision_encoder.\1",
    r"model\.vision_tower\.(transformer\.layers\.\d+\.attention)\.(.)_proj": r"vision_encoder.\1.w\2",
    r"model\.vision_tower\.(transformer\.layers\.\d+\.feed_forward)\.gate_proj": r"vision_encoder.\1.w1",
    r"model\.vision_tower\.(transformer\.layers\.\d+\.feed_forward)\.down_proj": r"vision_encoder.\1.w2",
    r"model\.vision_tower\.(transformer\.layers\.\d+\.feed_forward)\.up_proj": r"vision_encoder.\1.w3",
    r"model\.multi_modal_projector\.linear_1": "vision_language_adapter.w_in",
    r"model\.multi_modal_projector\.linear_2": "vision_language_adapter.w_out",
    r"model\.multi_modal_projector\.patch_merger\.merging_layer": "patch_merger.merging_layer",
    r"model\.multi_modal_projector\.norm": "pre_mm_projector_norm",
}  # fmt: skip
# Dimensions along which Meta cuts matrices; the embeddings of Llama 1 and 2 are cut by columns.
_COLUMNS = ("attention.wo", "feed_forward.w2")


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo ``permute`` of convert_llama_weights_to_hf.py."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def own(state: Tensors, heads: int, key_heads: int, vision_heads: int = 1) -> Tensors:
    """The tensors of a transformers model with the maker's names and order of rows."""
    found = {}
    for name, value in state.items():
        module, _, part = name.rpartition(".")
        if experts := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts", module):
            start = f"layers.{experts[1]}.feed_forward.experts"
            for expert, matrix in enumerate(value):
                each = {"w2": matrix} if part == "down_proj" else dict(zip(("w1", "w3"), matrix.chunk(2), strict=True))
                found |= {f"{start}.{expert}.{end}.weight": piece.clone() for end, piece in each.items()}
            continue
        pattern = next(pattern for pattern in NAMES if re.fullmatch(pattern, module))
        made = re.sub(pattern, NAMES[pattern], module)
        count = {"q": heads, "k": key_heads}.get(made[-1]) if ".attention.w" in made else None
        if count and made.startswith("vision"):
            count = vision_heads
        found[f"{made}.{part}"] = (value if count is None else interleaved(value, count)).clone()
    return found


def cut(tensors: Tensors, parts: int, embeddings: int) -> list[Tensors]:
    """Cut tensors as for tensor parallelism: embeddings along a dimension, vectors not at all."""
    found: list[Tensors] = [{} for _ in range(parts)]
    for name, value in tensors.items():
        axis = 1 if any(each in name for each in _COLUMNS) else embeddings if "embeddings" in name else 0
        pieces = [value] * parts if value.ndim < 2 else value.chunk(parts, axis)
        for part, piece in zip(found, pieces, strict=True):
            part[name] = piece.clone()
    return found


def write_parts(folder: pathlib.Path, parts: list[Tensors], params: dict) -> pathlib.Path:
    """Write Meta's form."""
    folder.mkdir(parents=True)
    for number, tensors in enumerate(parts):
        torch.save(tensors, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def write_whole(folder: pathlib.Path, tensors: Tensors, params: dict, shards: int = 1) -> pathlib.Path:
    """Write Mistral's form, in one file or in shards of an index."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "consolidated.safetensors")
        return folder
    names = {name: f"consolidated-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(names.values())):
        save_file({name: tensors[name] for name, at in names.items() if at == file}, folder / file)
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


# Params of small Llamas, and of one with a scaled rotation.
LLAMA = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 64, "norm_eps": 1e-5,
    "rope_theta": 5000.0,
}  # fmt: skip
LLAMA_SCALED = LLAMA | {"use_scaled_rope": True, "vocab_size": 160, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0}


def llama(tied: bool = False, intermediate: int = 192, **more: Any) -> transformers.LlamaForCausalLM:
    """A random model of the sizes above."""
    torch.manual_seed(3)
    settings: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}} | more
    config = transformers.LlamaConfig(
        vocab_size=160, hidden_size=64, intermediate_size=intermediate, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=tied, max_position_embeddings=4096,
        **settings,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) * (0.3 if value.ndim > 1 else 1))
    return model


def llamas_own(model: transformers.PreTrainedModel) -> Tensors:
    """The tensors of such a model with Meta's names."""
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return own(state, 4, 2)


def ranks() -> list[bytes]:
    """A small vocabulary of bytes: single ones, and some that are made of others."""
    return [bytes([byte]) for byte in range(256)] + [
        b"he", b"ll", b"in", b" t", b"hell", b" th", b"hello", b"ing", b" the", b"th", b"\xc3\xa9", b"  ", b"llo"
    ]  # fmt: skip


def tiktoken_file(tokens: list[bytes]) -> bytes:
    """The text of a ``tokenizer.model`` of Llama 3."""
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of protobuf."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value % (1 << 64))
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def sentencepiece(
    pieces: list[str], kind: int = 2, normalizer: bytes = field(3, 1) + field(4, 0), trainer: bytes = b""
) -> bytes:
    """The bytes of a SentencePiece model: three special pieces, 256 bytes, and these with falling scores."""
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    each = [field(1, text.encode()) + field(2, 0.0) + field(3, what) for text, what in special]
    each += [field(1, text.encode()) + field(2, float(-rank)) for rank, text in enumerate(pieces)]
    return b"".join(field(1, piece) for piece in each) + field(2, field(3, kind) + trainer) + field(3, normalizer)


def forward(tensors: Tensors, ids: torch.Tensor, params: dict) -> torch.Tensor:
    """Logits by the arithmetic of ``llama/model.py``, whose rotation multiplies neighbours as complex numbers."""
    heads, key_heads = params["n_heads"], params["n_kv_heads"]
    size, count = params["dim"] // heads, ids.shape[1]
    freqs = 1.0 / params["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    rotation = torch.polar(torch.ones(count, size // 2), torch.outer(torch.arange(count).float(), freqs))
    mask = torch.full((count, count), float("-inf")).triu(1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * tensors[name]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * rotation[:, None]).flatten(-2)

    h = tensors["tok_embeddings.weight"][ids]
    for layer in range(params["n_layers"]):
        at = f"layers.{layer}"
        x = norm(h, f"{at}.attention_norm.weight")
        q, k, v = ((x @ tensors[f"{at}.attention.w{each}.weight"].T).unflatten(-1, (-1, size)) for each in "qkv")
        q, k = rotated(q), rotated(k)
        k, v = (each.repeat_interleave(heads // key_heads, 2) for each in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / size**0.5 + mask
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(-2)
        h = h + mixed @ tensors[f"{at}.attention.wo.weight"].T
        x, w1, w2, w3 = (
            norm(h, f"{at}.ffn_norm.weight"),
            *(tensors[f"{at}.feed_forward.w{i}.weight"] for i in (1, 2, 3)),
        )
        h = h + (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    return norm(h, "norm.weight") @ tensors.get("output.weight", tensors["tok_embeddings.weight"]).T
