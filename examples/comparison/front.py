"""The safest point of every method that keeps a budget of accuracy, as a table, and all points as a plot.

    python examples/comparison/front.py comparison.json finetuning.json -o front

Safety is the mean of PU and of 1 − unsafe top-1 (GS alone also rewards destroyed models). A point keeps a budget of b
points where neither zero-shot accuracy of safe classes (the mean over data sets) nor safe R@1 in either direction falls
by more than b, on the very set that the table is of: the table describes what there is, it chooses nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUDGETS = (0, 1, 2, 5, 10)
SHOWN = {
    "GS": "GS",
    "PU": "PU",
    "unsafe_top1": "unsafe top-1",
    "zero_shot:safe": "safe zero-shot",
    "R1_safe": "safe R@1",
}
KEPT = ("zero_shot:safe", "R1_ts_vs", "R1_vs_ts")


def value(row: dict[str, Any], name: str) -> float:
    """A figure's mean over the seeds, in percent."""
    return 100 * row["figures"][name]["value"][0]


def family(method: str) -> str:
    """A method without the settings that are points of its curve; controls stay apart."""
    name, *settings = method.split(":")
    kept = [setting for setting in settings if "=" not in setting]
    return ":".join([name, *kept])


def loss(row: dict[str, Any], before: dict[str, Any]) -> float:
    """The greatest fall of what shall be kept, in points."""
    return max(value(before, name) - value(row, name) for name in KEPT)


def safety(row: dict[str, Any]) -> float:
    """The mean of PU and of 100 − unsafe top-1."""
    return (value(row, "PU") + 100 - value(row, "unsafe_top1")) / 2


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a line a method, safety, GS and PU of its safest point within each budget."""
    before = rows[0]
    yield "| method | " + " | ".join(f"≤ {budget} points" for budget in BUDGETS) + " |"
    yield "|---|" + "---|" * len(BUDGETS)
    for name in dict.fromkeys(family(row["method"]) for row in rows):
        own = [row for row in rows if family(row["method"]) == name]
        cells = []
        for budget in BUDGETS:
            within = [row for row in own if loss(row, before) <= budget + 1e-9]
            best = max(within, key=safety, default=None)
            cells.append(
                "–" if best is None else f"{safety(best):.1f} (GS {value(best, 'GS'):.1f}, PU {value(best, 'PU'):.1f})"
            )
        yield f"| {name} | " + " | ".join(cells) + " |"


def plot(tables: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Safety against what is lost, a panel an evaluation set."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 4.4), sharey=True, layout="constrained")
    names = list(dict.fromkeys(family(row["method"]) for row in next(iter(tables.values()))))
    colours = [*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors, *plt.get_cmap("Accent").colors]
    for panel, (set_name, rows) in zip(panels, tables.items(), strict=True):
        for number, name in enumerate(names):
            own = sorted((loss(row, rows[0]), safety(row)) for row in rows if family(row["method"]) == name)
            control = name.endswith("control") or name in ("random", "magnitude")
            look = (
                {"color": "#999999", "marker": "x"}
                if control
                else {"color": colours[number % len(colours)], "marker": "o"}
            )
            panel.plot(*zip(*own, strict=True), label=name, markersize=4, linewidth=0.8, **look)
        panel.set_title(set_name, fontsize=10)
        panel.set_xlabel("greatest loss of what shall be kept (points)", fontsize=9)
        panel.set_xlim(-2, 40)
    panels[0].set_ylabel("safety: mean of PU and 100 − unsafe top-1 (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    figure.savefig(file, dpi=130, metadata={"Software": None})


def main() -> None:
    """Read the comparisons, print the tables and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparisons", type=Path, nargs="+", help="comparison.json files of the same sets")
    parser.add_argument("-o", "--output", type=Path, default=Path("front"), help="name of the plot and the table")
    arguments = parser.parse_args()
    tables: dict[str, list[dict[str, Any]]] = {}
    for file in arguments.comparisons:
        for name, rows in json.loads(file.read_text("utf-8"))["tables"].items():
            known = tables.setdefault(name, [])
            known += [row for row in rows if row["method"] != "none" or not known]
    lines = [line for name, rows in tables.items() for line in (f"## {name}", "", *table(rows), "")]
    arguments.output.with_suffix(".md").write_text("\n".join(lines), "utf-8")
    plot(tables, arguments.output.with_suffix(".png"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
