"""Samples, what is said of them, and the table that says it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """Samples of one thing. ``against`` is measured in the same rounds; the ratio is this over that."""

    label: str
    unit: str
    samples: list[float]
    against: Figure | None = None
    command: str = ""
    group: str = ""  # what is measured, where a row measures several things of each way: one picture of `charts`

    @property
    def ratios(self) -> list[float]:
        """Round by round; what was not in every round was in the first ones."""
        if self.against is None:
            return []
        return [a / b if b else float("nan") for a, b in zip(self.samples, self.against.samples, strict=False)]

    def as_json(self) -> dict[str, Any]:
        named = {"label": self.label, "unit": self.unit, "group": self.group, "command": self.command}
        found = {**named, **summary(self.samples)}
        if self.against is not None:
            found["ratio"] = {"against": self.against.label, **summary(self.ratios)}
        return found


def of_runs(
    found: dict[str, list[dict[str, Any]]], key: str, unit: str, what: str, divisor: float, commands: dict[str, str]
) -> list[Figure]:
    """One figure a way; the ratio is to the first way, in the same round."""
    figures: list[Figure] = []
    for label, runs in found.items():
        samples = [run[key] / divisor for run in runs]
        against = figures[0] if figures else None
        figures.append(Figure(label + what, unit, samples, against, commands[label], what.removeprefix(", ")))
    return figures


def summary(samples: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) >= 1 else 4 if abs(value) < 0.1 else 3}f}"


def table(results: dict[str, list[Figure]], facts: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table, and below it what is no figure."""
    lines = ["| row | what | unit | median | min | max | ratio | of |", "|---|---|---|--:|--:|--:|--:|---|"]
    for row, figures in results.items():
        for figure in figures:
            found = figure.as_json()
            spread = [number(found[key]) for key in ("median", "min", "max")]
            pair = ["", ""] if figure.against is None else [number(found["ratio"]["median"]), figure.against.label]
            cells = [row, figure.label, figure.unit, *spread, *pair]
            lines.append(f"| {' | '.join(cells)} |")
    noted = [f"- {row}: {what}: {value}" for row, found in facts.items() for what, value in found.items()]
    return "\n".join([*lines, *([""] if noted else []), *noted])
