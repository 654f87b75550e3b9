"""Pictures of results: ``python -m tools.bench.charts RESULTS.json [MORE.json ...] [--out charts]``.

One picture a row and file: bars are medians, whiskers go from the least to the most sample. From all files together,
two curves: opening time against the number of tensors, and load time against the size of the model. Wants the extra
``plot``, or matplotlib alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.bench import models
from tools.bench.figures import number

Results = dict[str, Any]
_OURS, _THEIRS = "#2f6fab", "#b5b5b5"
_OTHERS = (  # in the names of what a row compares with
    "bitsandbytes", "transformers", "safetensors", "torch.load", "gguf-py", "llama.cpp", "xxh3", "direct reads",
    "python,", "numpy",
)  # fmt: skip
_LINES = ("#2f6fab", "#c8553d", "#588157", "#8e6c8a", "#e09f3e", "#4a4e69", "#83c5be", "#9c6644", "#6c757d")
_MARKS = "osD^v<>Ph"


def panels(figures: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Figures that share an axis: what was measured, and its unit."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for figure in figures:
        found.setdefault((figure.get("group", ""), figure["unit"]), []).append(figure)
    return found


def name_of(figure: dict[str, Any]) -> str:
    """A label without what the title of its panel says already."""
    return figure["label"].removesuffix(f", {figure.get('group', '')}")


def opening(results: list[Results]) -> list[tuple[int, dict[str, Any]]]:
    """Number of tensors and figure, from the rows ``open``; of one number the last file's."""
    found = {
        int(figure["label"].partition(" tensors")[0].replace(",", "")): figure
        for result in results
        if "open" in result["rows"]
        for figure in result["rows"]["open"]["figures"]
    }
    return sorted(found.items())


def loading(results: list[Results]) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Way -> parameters of the model and figure, from the rows ``load``: the load alone, in seconds."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        if "load" not in result["rows"]:
            continue
        parameters = models.SHAPES[result["model"]].bytes // 2
        for figure in panels(result["rows"]["load"]["figures"]).get(("", "s"), []):
            found.setdefault(figure["label"], {})[parameters] = figure
    return {label: sorted(points.items()) for label, points in found.items()}


def spread(figures: list[dict[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the least and the most are from them, as matplotlib wants whiskers."""
    medians = [figure["median"] for figure in figures]
    return medians, [
        [figure["median"] - figure["min"] for figure in figures],
        [figure["max"] - figure["median"] for figure in figures],
    ]


def is_ours(row: str, name: str) -> bool:
    """Whether a bar is the package's work, and not what it is compared with."""
    return row == "sources" or "aibit" in name or not any(other in name for other in _OTHERS)


def bars(plt: Any, row: str, result: Results, path: Path) -> None:
    """One row of one file: a panel for each thing that was measured, in columns where there are many."""
    found = panels(result["rows"][row]["figures"])
    columns = 1 if len(found) < 4 else 2 if len(found) < 7 else 3
    lines = -(-len(found) // columns)
    lengths = [len(figures) for figures in found.values()]
    heights = [0.3 * max(lengths[i * columns : (i + 1) * columns]) + 0.7 for i in range(lines)]
    size = (9 if columns == 1 else 6.2 * columns), sum(heights) + 0.7
    picture, axes = plt.subplots(
        lines, columns, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, ((group, unit), figures) in zip(axes.flat, found.items(), strict=False):
        medians, whiskers = spread(figures)
        names = [name_of(figure) for figure in figures]
        places = range(len(names))
        colors = [_OURS if is_ours(row, name) else _THEIRS for name in names]
        axis.barh(places, medians, xerr=whiskers, color=colors, height=0.7, error_kw={"capsize": 3, "elinewidth": 1})
        axis.set_yticks(places, names, fontsize=9)
        axis.set_ylim(len(names) - 0.4, -0.6)  # the first on top
        most = max(figure["max"] for figure in figures) or 1
        for place, figure in zip(places, figures, strict=True):
            axis.text(figure["max"] + most * 0.015, place, number(figure["median"]), va="center", fontsize=8)
        axis.set_xlim(0, most * (1.05 + 0.08 * columns))  # room for the number behind the longest whisker
        axis.set_title(f"{group}, {unit}" if group else unit, fontsize=10, loc="left")
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    about, runs = result["rows"][row]["about"], result["runs"]
    times = "1 run" if runs == 1 else f"{runs} runs"
    picture.suptitle(f"{row}: {about}\nmodel {result['model']}, {times}; whiskers from least to most", fontsize=10)
    picture.savefig(path, dpi=110)
    plt.close(picture)


def curve(plt: Any, lines: dict[str, list[tuple[int, dict[str, Any]]]], title: str, x: str, y: str, path: Path) -> None:
    """Medians with whiskers over a size, both axes logarithmic: what grows as the size does is a straight line."""
    from matplotlib import ticker

    picture, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for i, (label, points) in enumerate(lines.items()):
        medians, whiskers = spread([figure for _, figure in points])
        axis.errorbar(
            [size for size, _ in points],
            medians,
            yerr=whiskers,
            label=label,
            color=_LINES[i % len(_LINES)],
            marker=_MARKS[i % len(_MARKS)],
            markersize=5,
            linestyle="--" if i >= len(_LINES) else "-",
            linewidth=2.2 if label.startswith("aibit") else 1.2,
            capsize=3,
        )
        if len(lines) == 1:
            for (size, figure), median in zip(points, medians, strict=True):
                place = {"xytext": (6, -12), "textcoords": "offset points"}
                axis.annotate(number(figure["median"]), (size, median), fontsize=9, **place)
    axis.set_xscale("log")
    axis.set_yscale("log")
    sizes = sorted({size for points in lines.values() for size, _ in points})
    axis.set_xticks(sizes, [short(size) for size in sizes])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    picture.savefig(path, dpi=110)
    plt.close(picture)


def short(size: int) -> str:
    """5,000 as 5k, 160,000,000 as 160M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{letter}"
    return str(size)


def draw(paths: list[Path], out: Path) -> Iterator[Path]:
    """Draw all there is to be drawn of these results; gives the path of each picture."""
    import matplotlib

    matplotlib.use("Agg")  # no window, wherever this runs
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    for path, result in zip(paths, results, strict=True):
        for row, found in result["rows"].items():
            if found["figures"]:
                target = out / f"{path.stem}-{row}.png"
                bars(plt, row, result, target)
                yield target
    if len(points := opening(results)) > 1:
        target = out / "open-by-tensors.png"
        curve(plt, {"aibit": points}, "Opening a file and checking its tables", "tensors", "ms", target)
        yield target
    lines = loading(results)
    if len({size for points in lines.values() for size, _ in points}) > 1:
        target = out / "load-by-parameters.png"
        curve(plt, lines, "Until there is a model that can run, or its tensors", "parameters", "s", target)
        yield target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files that run.py wrote")
    parser.add_argument("--out", type=Path, default=Path("charts"), help="a folder for the pictures (default: charts)")
    given = parser.parse_args()
    for path in draw(given.results, given.out):
        print(path)


if __name__ == "__main__":
    main()
