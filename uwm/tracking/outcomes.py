"""What a run ends with, as a tracker takes it: figures by set, column and name, fractions, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]  # set -> column -> result, as uwm.json has them


def figures_of(results: Results) -> dict[str, float]:
    """``set/column/figure`` -> value."""
    return {
        f"{name}/{column}/{figure}": value
        for name, columns in results.items()
        for column, result in columns.items()
        for figure, value in of_result(result)
    }


def of_result(result: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Name -> value: figures of pairs, and ``zero_shot/<data set>/top1`` and the like."""
    yield from ((name, interval[0]) for name, interval in result.get("figures", {}).items())
    for data_set, found in result.get("zero_shot", {}).items():
        for name, value in found.items():
            if isinstance(value, int | float):
                yield f"zero_shot/{data_set}/{name}", value


def texts_of(verdict: Mapping[str, Any] | None) -> dict[str, str]:
    """The verdict and its sentences; nothing where nothing was measured."""
    if verdict is None:
        return {}
    return {"verdict": verdict["verdict"], "because": " ".join(verdict["sentences"])}
