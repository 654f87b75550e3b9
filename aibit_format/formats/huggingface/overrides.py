"""Finds what settings say of one module beside what they say of all.

    dynamic        of GPTQModel: expressions, matched from the start of a name, and what is other in these modules; the
                   first that matches counts. "+:" before one means nothing, "-:" that they are not quantized
    extra_config   of AutoRound: names, or expressions that are searched in names, and what is other; 16 bits or a
                   data_type of floats mean that they are not quantized. A name goes before an expression

See ``dynamic_get`` in ``gptqmodel.quantization.config`` and ``get_layer_config`` in ``auto_round.inference``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import SourceError

_SKIPPED, _INCLUDED = "-:", "+:"
_WIDEST = 8  # bits of codes; more are those of floats
_LONGEST = 512  # characters of an expression


@dataclass(frozen=True, slots=True)
class Rule:
    """Say what is other in the modules that an expression finds; ``None`` if they are not quantized."""

    key: str
    name: str
    finds: Callable[[str], Any]
    said: Mapping[str, Any] | None


class Overrides:
    """Hold the rules of settings.

    Args:
        said: the settings.
        refused: makes an error of what is wrong with them.

    Raises:
        SourceError: an expression is none, or what is said is no object.
    """

    def __init__(self, said: Mapping[str, Any], refused: Callable[[str], SourceError]) -> None:
        self._said, self._refused = said, refused
        extra = [self._extra(name, each) for name, each in self._items("extra_config")]
        self._exact = {rule.name: rule for rule in extra}
        self._rules = [*(self._dynamic(name, each) for name, each in self._items("dynamic")), *extra]

    def rule(self, module: str) -> Rule | None:
        """Return the rule that counts for a module, if there is one."""
        return self._exact.get(module) or next((rule for rule in self._rules if rule.finds(module)), None)

    def _items(self, key: str) -> list[tuple[str, Any]]:
        found = self._said.get(key)
        if found is None or found is False:
            return []
        if not isinstance(found, Mapping):
            raise self._refused(f"{key} {str(found)[:80]}, expected an object")
        return list(found.items())

    def _dynamic(self, name: str, said: Any) -> Rule:
        expression = self._compiled("dynamic", name.removeprefix(_SKIPPED).removeprefix(_INCLUDED))
        skipped = name.startswith(_SKIPPED)
        return Rule("dynamic", name, expression.match, None if skipped else self._checked("dynamic", name, said))

    def _extra(self, name: str, said: Any) -> Rule:
        found = self._checked("extra_config", name, said)
        bits, kind = found.get("bits"), str(found.get("data_type") or "int")
        kept = (type(bits) is int and bits > _WIDEST) or kind.startswith(("fp", "float", "bf"))
        return Rule("extra_config", name, self._compiled("extra_config", name).search, None if kept else found)

    def _checked(self, key: str, name: str, said: Any) -> Mapping[str, Any]:
        if not isinstance(said, Mapping):
            raise self._refused(f"{key} {str(said)[:80]} for modules {name[:80]!r}, expected an object")
        return said

    def _compiled(self, key: str, expression: str) -> re.Pattern[str]:
        try:
            if len(expression) <= _LONGEST:
                return re.compile(expression)
            error: object = f"{len(expression)} characters, at most {_LONGEST}"
        except (re.error, RecursionError, OverflowError) as found:
            error = found
        raise self._refused(f"{key} for modules {expression[:80]!r}, no regular expression: {error}")
