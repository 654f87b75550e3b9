"""Change JSON: its values, its names, and its text where a value would not do."""

from __future__ import annotations

import json
import random
from typing import Any

from . import Mutate

_EVIL = (
    None, True, False, 0, 1, -1, 2, 0.5, 1e308, 4, 8, 16, 64, 128, 2**31, 2**32, 2**53, 2**63, 2**64 - 1, 2**64, 10**40,
    "", "0", [], [[]], [0], [1 << 62, 4], "\ud800", "\0", "..", "/etc/passwd",
)  # fmt: skip
_RAW = ("NaN", "Infinity", "-0", "1e999", "9" * 5000, "[" * 2000 + "]" * 2000, '"\\ud800"', "0x1", "", "{}")


class _Pairs(list):
    """An object as its pairs: names may come twice."""


def changed(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another JSON text, or, now and then, what is none."""
    if rng.random() < 0.1:
        return bytes(mutate(data or b"{}", 2 * len(data) + 64))
    value = json.loads(data, object_pairs_hook=_Pairs)
    places = list(_places(value))
    if not places:
        return rng.choice(_RAW).encode()
    raw: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 2))):
        holder, at = rng.choice(places)
        if at < len(holder):
            _change(holder, at, rng, mutate, places, raw)
    text = _text(value)
    for mark, instead in raw.items():
        text = text.replace(json.dumps(mark), instead)
    return text.encode("utf-8", "surrogatepass")


def _change(holder: list, at: int, rng: random.Random, mutate: Mutate, places: list, raw: dict[str, str]) -> None:
    way = rng.choice(("value", "value", "value", "other", "text", "drop", "repeat", "name", "raw"))
    inner = holder[at][1] if isinstance(holder, _Pairs) else holder[at]
    if way == "drop":
        del holder[at]
        return
    if way == "repeat":
        holder.insert(rng.randrange(len(holder) + 1), holder[at])
        return
    if way == "name" and isinstance(holder, _Pairs):
        others = [place for place in places if isinstance(place[0], _Pairs) and place[1] < len(place[0])]
        names = [there[index][0] for there, index in others]
        holder[at] = (rng.choice((rng.choice(names), _string(holder[at][0], mutate))), inner)
        return
    new: Any = rng.choice(_EVIL)
    if way == "text" and isinstance(inner, str):
        new = _string(inner, mutate)
    elif way == "value" and type(inner) in (int, float) and rng.random() < 0.7:
        new = rng.choice((inner + 1, inner - 1, inner * 2, -inner, inner // 2, float(inner), str(inner)))
    elif way == "other":
        there, index = rng.choice(places)
        if index < len(there):
            new = there[index][1] if isinstance(there, _Pairs) else there[index]
            new = json.loads(_text(new), object_pairs_hook=_Pairs)  # a copy: it may be around this very place
    elif way == "raw":
        new = f"raw {len(raw)}"
        raw[new] = rng.choice(_RAW)
    holder[at] = (holder[at][0], new) if isinstance(holder, _Pairs) else new


def _places(value: Any):
    """(holder, index) of every value in a value."""
    if isinstance(value, list):
        for at, item in enumerate(list(value)):
            yield value, at
            yield from _places(item[1] if isinstance(value, _Pairs) else item)


def _string(text: str, mutate: Mutate) -> str:
    return bytes(mutate(text.encode("utf-8", "surrogatepass") or b"a", 300)).decode("utf-8", "surrogateescape")


def _text(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{_text(inner)}" for name, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value)
