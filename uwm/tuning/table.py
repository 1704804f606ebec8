"""A front as tables: Markdown and CSV for files, aligned columns for the terminal; no torch."""

from __future__ import annotations

import csv
import io
import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..escaping import clean, csv_cell, readable_markdown
from ..figures import ZERO_SHOT, accuracy_of, label
from ..text_tables import aligned_markdown, text_table
from .front import CHECKED, Front, Point, Result
from .points import figures, loss_of, number, objective_of, settings_words

Measure = tuple[float, ...] | None  # percent: a mean, or mean, low and high
OBJECTIVE, LOSS, KNOWN, UNSAFE_CLASSES = "objective", "loss", ZERO_SHOT, f"{ZERO_SHOT}:unsafe"
FIGURES = ("GS", "PU", "unsafe_top1", "R1_safe")
UNEDITED = "unedited"
SHORT = {"unsafe_top1": "unsafe", "R1_safe": "R@1", KNOWN: "0-shot", UNSAFE_CLASSES: "unsafe 0"}  # on the terminal
LEGEND = (
    "Percent. *: the knee. cv: cross-validation, by which points were chosen. unsafe: unsafe first results (lower is "
    "better). R@1: of safe queries. 0-shot: zero-shot accuracy{}. tune.md has 95 % intervals and all settings."
)
READING = (
    "Percent; in brackets 95 % intervals. unsafe top-1: unsafe first results, lower is better. safe R@1: retrieval by "
    "safe queries. Settings: those that differ among the trials of a method."
)
WIDTH = 120  # columns of a terminal


def summary(front: Front) -> list[str]:
    """What was done and how to read it, in plain sentences."""
    trials, pairs = front["trials"], front["calibration"]
    methods = "; ".join(f"{name} {_rate(**found)}" for name, found in trials["by_method"].items())
    name, lower = front["objective"]["label"], front["objective"]["lower_is_better"]
    of = "the unedited model's value" if front["loss"]["unit"] == "%" else "points"
    lines = [
        f"{trials['done']} of {trials['asked']} trials could be measured. They took {trials['seconds']:.0f} seconds, "
        f"that is {trials['per_minute']:.0f} a minute ({methods}).",
        f"No other trial has a {'lower' if lower else 'higher'} {name} at the same loss or less than a point of the "
        "front has.",
        f"Loss is the greatest fall of any of {', '.join(front['loss']['terms'])}, in "
        f"{f'% of {of}' if front['loss']['unit'] == '%' else of}. A negative loss is a gain.",
        f"Points were chosen by cross-validation: {pairs['pairs']} pairs in {pairs['folds']} folds. Their own "
        "cross-validated figures are a little too good, because the best of many trials are picked.",
    ]
    sets = ", ".join(front["baseline"]["held_out"])
    lines.append(
        f"Each point was measured once on held-out pairs ({sets}). No choice was made by these figures."
        if sets
        else "There were no held-out pairs, so no figure is free of that choice."
    )
    return [*lines, f"Point {front['knee']} is the knee: beyond it a better {name} costs most."]


def measures(front: Front, result: Result, baseline: Result) -> dict[str, Measure]:
    """The figures of tables, in percent: objective, loss, and those that everybody asks for; None where one is absent.

    Args:
        front: Whose objective and loss they are.
        result: Of a point, or of the unedited model.
        baseline: Of the unedited model on the same pairs.
    """
    text, found = front["objective"]["text"], result["figures"]
    objective, loss = objective_of(front, result), loss_of(front, result, baseline)
    measured: dict[str, Measure] = {
        OBJECTIVE: _percent(found[text]) if text in found else None if objective is None else (objective,),
        LOSS: None if loss is None else (loss,),
    }
    measured |= {name: _percent(found[name]) if name in found else None for name in FIGURES if name != text}
    known = result["zero_shot"].values()
    if known:
        measured[KNOWN] = _mean([data[accuracy_of(data)] for data in known])
        if len(known) == 1 and not any("top1_safe" in data for data in known):
            data = next(iter(known))
            measured[KNOWN] = _percent([data["top1"], *data.get("top1_interval", ())])
        if unsafe := [data["top1_unsafe"] for data in known if "top1_unsafe" in data]:
            measured[UNSAFE_CLASSES] = _mean(unsafe)
    return measured


def _percent(values: Sequence[float]) -> Measure:
    return tuple(100 * value for value in values)


def _mean(values: Sequence[float]) -> Measure:
    return (100 * sum(values) / len(values),)


def heading(front: Front, name: str) -> str:
    """What a column of `measures` is called."""
    if name == OBJECTIVE:
        return front["objective"]["label"]
    if name == LOSS:
        return f"loss ({front['loss']['unit']})"
    classes = any("top1_safe" in data for data in front["baseline"]["cross_validated"]["zero_shot"].values())
    return "zero-shot, safe classes" if name == KNOWN and classes else label(name)


def cell(measure: Measure) -> str:
    """``12.3``, ``12.3 [10.1, 14.4]``, or a dash."""
    if measure is None:
        return "–"
    mean, *ends = map(number, measure)
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _sets(front: Front) -> Iterator[tuple[str, Result]]:
    """The held-out sets, with the unedited model's result; cross-validation where there are none."""
    yield from front["baseline"]["held_out"].items() or [(CHECKED, front["baseline"]["cross_validated"])]


def _on(point: Point, name: str) -> Result:
    return point["held_out"].get(name, point["cross_validated"])


def lines(front: Front, name: str) -> list[tuple[Point | None, dict[str, Measure], dict[str, Measure]]]:
    """The unedited model (None) and every point: its measures in cross-validation, and on a set.

    Args:
        front: The front.
        name: A held-out set; any other name stands for cross-validation.
    """
    before = front["baseline"]["cross_validated"]
    there = front["baseline"]["held_out"].get(name, before)
    found: list[Any] = [(None, measures(front, before, before), measures(front, there, there))]
    for point in front["points"]:
        chosen = measures(front, point["cross_validated"], before)
        chosen |= {OBJECTIVE: (point["objective"],), LOSS: (point["loss"],)}
        found.append((point, chosen, measures(front, _on(point, name), there)))
    return found


def cells(front: Front, name: str) -> list[list[str]]:
    """All points on a set as rows of cells, with a heading and the unedited model first."""
    measured = lines(front, name)
    columns = [*measured[0][2]]
    chosen_by = [] if name == CHECKED else [OBJECTIVE, LOSS]
    head = ["point", "method", "settings", *(f"{heading(front, column)}, {CHECKED}" for column in chosen_by)]
    table = [[*head, *(heading(front, column) for column in columns)]]
    for point, chosen, there in measured:
        about = ["", UNEDITED, ""] if point is None else _about(front, point, " (knee)")
        first = (cell(mean_of(chosen[column])) for column in chosen_by)
        table.append([*about, *first, *(cell(there.get(column)) for column in columns)])
    return table


def mean_of(measure: Measure) -> Measure:
    """Without its interval."""
    return None if measure is None else measure[:1]


def _about(front: Front, point: Point, mark: str) -> list[str]:
    number_ = f"{point['number']}{mark if point['number'] == front['knee'] else ''}"
    return [number_, point["method"], settings_words(front, point["method"], point["settings"])]


def titled(front: Front) -> Iterator[tuple[str, str]]:
    """Every table's set and its title."""
    for name, result in _sets(front):
        yield name, f"{name} ({result['pairs']} pairs)"


def markdown(front: Front) -> str:
    """Plain sentences, then a table for each held-out set, with intervals where there are any."""
    parts = [
        f"# {front['objective']['label'].capitalize()} against loss of knowledge",
        "\n".join(map(readable_markdown, summary(front))),
    ]
    for name, title in titled(front):
        parts.append(f"## {readable_markdown(title)}\n\n{aligned_markdown(cells(front, name), 3)}")
    parts.append(f"{READING}{readable_markdown(classes_words(front))}")
    parts.append(
        f"```\nuwm apply {shlex.quote(clean(front['model']['name']))} FOLDER --point {front['knee']} -o OUT\n```"
    )
    return "\n\n".join([*parts, *(f"- {readable_markdown(note)}" for note in front["notes"])]) + "\n"


def classes_words(front: Front) -> str:
    """How zero-shot accuracy of several data sets became one figure."""
    names = [*front["baseline"]["cross_validated"]["zero_shot"]]
    return f" Zero-shot: the mean over {', '.join(names)}." if len(names) > 1 else ""


def point_line(front: Front, point: Point) -> str:
    """One point in one line: method, settings, and its figures in cross-validation and on every held-out set."""
    settings = settings_words(front, point["method"], point["settings"])
    knee = " (the knee)" if point["number"] == front["knee"] else ""
    parts = [f"point {point['number']}{knee}: {point['method']} {settings}".rstrip()]
    parts.append(f"{CHECKED}: {figures(front, point['objective'], point['loss'])}")
    for name, before in front["baseline"]["held_out"].items():
        found = measures(front, point["held_out"][name], before)
        objective, loss = (None if (value := found[key]) is None else value[0] for key in (OBJECTIVE, LOSS))
        known = [figures(front, objective, loss)]
        known += [f"{heading(front, key)} {cell(mean_of(value))} %" for key, value in found.items()
                  if value is not None and key not in (OBJECTIVE, LOSS)]  # fmt: skip
        parts.append(f"{name}: {', '.join(filter(None, known))}")
    return "; ".join(parts)


def point_facts(front: Front, point: Point) -> dict[str, Any]:
    """The same for JSON; figures in percent, with their interval where there is one."""
    about = {name: point[name] for name in ("number", "trial", "method", "settings", "objective", "loss")}
    there = front["baseline"]["held_out"].items()
    held_out = {name: measures(front, point["held_out"][name], before) for name, before in there}
    return {**about, "knee": point["number"] == front["knee"], "held_out": held_out}


def terminal(front: Front) -> str:
    """The headline figures, at most 120 columns wide where the settings can be cut to that."""
    parts = [f"{clean(title)}\n{text_table(_narrow(front, name))}" for name, title in titled(front)]
    safe = any("top1_safe" in data for data in front["baseline"]["cross_validated"]["zero_shot"].values())
    extra = " of safe classes, where a set names unsafe ones (unsafe 0: of these)" if safe else ""
    trials = front["trials"]
    told = f"{trials['done']} trials, {trials['per_minute']:.0f} a minute; {len(front['points'])} on the front"
    return "\n\n".join([*parts, textwrap.fill(f"{told}. {LEGEND.format(extra)}", WIDTH)])


def _rate(trials: float, seconds: float) -> str:
    """How many trials, and how many a minute where they took time."""
    return f"{trials:.0f}" + (f", {60 * trials / seconds:.0f} a minute" if seconds else "")


def _narrow(front: Front, name: str) -> list[list[str]]:
    """The table without intervals, its settings cut."""
    measured = lines(front, name)
    columns = [*measured[0][2]]
    title, unit = front["objective"]["label"], front["loss"]["unit"]
    short = {OBJECTIVE: title, LOSS: f"loss {unit}", **SHORT}
    chosen_by = {} if name == CHECKED else {OBJECTIVE: f"cv {title}", LOSS: "cv loss"}
    table = [["", "method", "settings", *chosen_by.values(), *(short.get(column, column) for column in columns)]]
    for point, chosen, there in measured:
        about = ["", UNEDITED, ""] if point is None else _about(front, point, "*")
        figures = [*(chosen[column] for column in chosen_by), *(there.get(column) for column in columns)]
        table.append([*about, *(cell(mean_of(found)) for found in figures)])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    room = max(WIDTH - (sum(widths) - widths[2]) - 2 * (len(widths) - 1), len("settings"))
    for row in table:
        row[2] = (row[2] if len(row[2]) <= room else row[2][: room - 1] + "…").ljust(min(room, widths[2]))
        row[1] = row[1].ljust(widths[1])
    return table


def csv_table(front: Front) -> str:
    """Everything, one line a point and set, the unedited model (point empty) first.

    Objective and loss in percent (loss in points where that is its unit), figures as fractions with their intervals.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    base = front["baseline"]["cross_validated"]
    figures = [*base["figures"]]
    accuracies = [
        (data, kind) for data, found in base["zero_shot"].items() for kind in found if kind.startswith("top1")
    ]
    accuracies = [pair for pair in accuracies if pair[1] != "top1_interval"]
    head = ["set", "pairs", "point", "knee", "trial", "method", "settings", "objective", "loss"]
    ends = (f"{figure}{end}" for figure in figures for end in ("", "_low", "_high"))
    writer.writerow([*head, *map(csv_cell, ends), *(csv_cell(f"{kind}:{data}") for data, kind in accuracies)])
    for name in (CHECKED, *front["baseline"]["held_out"]):
        before = front["baseline"]["held_out"].get(name, base) if name != CHECKED else base
        writer.writerow([csv_cell(name), before["pairs"], "", "", "", UNEDITED, "", *_numbers(front, before, before, figures, accuracies)])  # noqa: E501  # fmt: skip
        for point in front["points"]:
            result = point["cross_validated"] if name == CHECKED else point["held_out"][name]
            at_knee = str(point["number"] == front["knee"]).lower()
            about = [point["number"], at_knee, point["trial"], csv_cell(point["method"]), json.dumps(point["settings"])]
            writer.writerow(
                [csv_cell(name), result["pairs"], *about, *_numbers(front, result, before, figures, accuracies)]
            )
    return out.getvalue()


def _numbers(
    front: Front, result: Result, before: Result, figures: Sequence[str], accuracies: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """The cells of a line of CSV after the settings; empty where something was not measured."""
    for value in (objective_of(front, result), loss_of(front, result, before)):
        yield "" if value is None else repr(value)
    for figure in figures:
        yield from map(repr, result["figures"].get(figure, ())) if figure in result["figures"] else ("", "", "")
    for data, kind in accuracies:
        found: Mapping[str, Any] = result["zero_shot"].get(data, {})
        yield repr(found[kind]) if kind in found else ""
