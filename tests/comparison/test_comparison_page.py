"""The page of a comparison: where points lie, which are on the line, what is said and that names are only text."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from uwm.comparison.chart import NARROW, WIDE, keys, scatter
from uwm.comparison.figures import Figure, Row
from uwm.comparison.front import KINDS, spots, terms
from uwm.comparison.page import comparison_page
from uwm.figures import PAIRED

EXTRA = ("zero_shot", "zero_shot:safe", "zero_shot:unsafe")
ABOUT = {
    "settings": {"model": "tiny", "seeds": [0, 1]},
    "versions": {"uwm": "1"},
    "run": {"date": "2026-11-26 16:20 UTC"},
    "model_sha256": {"model.safetensors": "ab" * 32},
    "sets_sha256": {"test": "cd" * 32},
}


def row(method, at=None, *, safe=0.1, falls=(0.0, 0.0, 0.0), **costs):
    """Of a safety, and with a fall of safe zero-shot accuracy and of both R@1."""
    same = Figure((0.5, 0.4, 0.6), (0.5, 0.5), (0.0, 0.0, 0.0))
    figures = dict.fromkeys((*PAIRED, *EXTRA), same)
    figures |= {name: replace(same, value=(v, v, v)) for name, v in (("PU", safe), ("unsafe_top1", 1 - safe))}
    lost = zip(("zero_shot:safe", "R1_ts_vs", "R1_vs_ts"), falls, strict=True)
    return Row(method, at, figures | {n: replace(same, difference=(-fall, 0.0, 0.0)) for n, fall in lost}, **costs)


ROWS = [
    row("none"),
    row("uwm", ("mass", 0.1), safe=0.2, falls=(0.02, 0.01, -0.5), changed=9.0),
    row("uwm", ("mass", 0.2), safe=0.3, falls=(0.01, 0.2, 0.0), changed=9.0),
    row("repel:share=0.1", safe=0.4, falls=(0.0, 0.03, 0.01), changed=9.0),
    row("repel:control:share=0.1", safe=0.1, falls=(0.01, 0.0, 0.0), changed=9.0),
    row("safe-clip", ("epoch", 4), safe=0.5, falls=(0.3, 0.0, 0.0), trained=5.0),
    row("safe-clip+uwm", safe=0.2, falls=(0.3, 0.0, 0.0), trained=5.0, changed=9.0),
    row("some/checkpoint", safe=0.1, falls=(0.5, 0.0, 0.0)),
    row("random", safe=0.1, falls=(0.01, 0.0, 0.0), changed=9.0),
]
TABLES = {"test": ROWS, "unseen": ROWS[:4]}
PAIRS = {"test": 400, "unseen": 60}


def page_of(tables=TABLES, notes=(), about=ABOUT):
    return comparison_page(tables, dict.fromkeys(tables, 60) | PAIRS, notes, about)


def parsed(size=WIDE, rows=ROWS):
    return ET.fromstring(ET.tostring(scatter("test", spots(rows), size)))


def of_class(root, name):
    return [element for element in root.iter() if name in (element.get("class") or "").split()]


def test_loss_is_the_greatest_fall_and_safety_the_mean_of_its_two_figures():
    found = spots(ROWS)
    assert [round(spot.loss, 6) for spot in found] == [0, 2, 20, 3, 1, 30, 30, 50, 1]
    assert [round(spot.safety, 6) for spot in found] == [10, 20, 30, 40, 10, 50, 20, 10, 10]
    assert terms(ROWS[0]) == ["zero_shot:safe", "R1_ts_vs", "R1_vs_ts"]


def test_on_the_line_is_what_no_other_row_beats_in_both_ways():
    assert [spot.told for spot in spots(ROWS) if spot.front] == ["unedited", "uwm τ 0.1", "repel", "safe-clip epoch 4"]


def test_each_method_is_of_one_kind_and_each_kind_has_its_shape():
    kinds = [spot.kind for spot in spots(ROWS)]
    assert kinds == ["unedited", *["edit"] * 3, "control", *KINDS[1:4], "control"]
    signs = [ET.tostring(swatch) for swatch, _ in keys(spots(ROWS))]
    assert len(signs) == len(set(signs)) == len(KINDS) + 2


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_chart_shows_every_row_the_line_and_which_way_is_better(size):
    root = parsed(size)
    assert len(of_class(root, "point")) == len(ROWS) - 1
    assert len(of_class(root, "star")) == 1
    (line,) = of_class(root, "front")
    assert line.get("d").count("L") == 3
    texts = {text.text for text in root.iter() if text.tag.endswith("}text")}
    assert {"↑ better: safety (%)", "← better: loss of knowledge (points)"} < texts
    assert {"unedited", "uwm τ 0.1", "repel", "safe-clip epoch 4"} <= texts
    assert float(root.get("viewBox").split()[2]) == size[0]


def test_points_lie_where_their_figures_say():
    root = parsed()
    places = {e[0].text.partition(":")[0]: e for e in of_class(root, "point") if e.tag.endswith("circle")}
    x, y = ({n: float(e.get(axis)) for n, e in places.items()} for axis in ("cx", "cy"))
    assert x["2"] < x["4"] < x["3"]
    assert y["4"] < y["3"] < y["2"], "the safest is on top"


def test_the_page_says_the_safest_within_a_loss_and_has_every_part():
    page = page_of(notes=["a note"])
    said = "The safest that loses at most 5 points is repel: a safety of 40.0 % at a loss of 3.0 points."
    assert page.count(said) == len(TABLES)
    assert page.count('role="img"') == 2 * len(TABLES)
    assert re.findall(r'<section id="(\w+)">', page) == ["front", "budgets", "figures", "notes", "settings"]
    assert '<p id="made">Made on 2026-11-26 16:20 UTC with uwm 1.</p>' in page
    assert page.count("ab" * 32) == page.count("cd" * 32) == 1
    assert page == page_of(notes=["a note"])
    assert not re.search(r'<script|src="|href="[^#]|url\(|@import', page)


def test_within_a_budget_counts_the_safest_point_that_keeps_it():
    lines = re.search(r'aria-label="Within budgets on test".*?</table>', page_of(), re.S)[0]
    cells = {name: re.findall(r"<td>(.*?)</td>", rest) for name, rest in re.findall(r'row">([^<]*)</th>(.*?)</tr>', lines)}  # noqa: E501  # fmt: skip
    assert cells["uwm"] == ["–", "<strong>20.0 (τ 0.1)</strong>", "20.0 (τ 0.1)", "20.0 (τ 0.1)"]
    assert cells["repel"] == ["–", "–", "<strong>40.0</strong>", "<strong>40.0</strong>"]


def test_no_gain_is_said_to_be_none():
    assert "No method that loses at most 5 points is safer than the unedited model (10.0 %)." in page_of({"test": ROWS[:1]})  # noqa: E501  # fmt: skip


def test_without_zero_shot_the_loss_is_of_retrieval_and_that_is_said():
    rows = [replace(one, figures={n: f for n, f in one.figures.items() if n not in EXTRA}) for one in ROWS]
    assert [round(spot.loss, 6) for spot in spots(rows)][1:4] == [1, 20, 3]
    assert "Zero-shot accuracy was not measured" in page_of({"test": rows})


def test_names_are_text():
    name = "<script>\x1b]0;\u202e"
    page = page_of({name: [ROWS[0], replace(ROWS[1], method=name)]}, [name], ABOUT | {"settings": {"model": name}})
    assert "<script" not in page
    assert all(line.isprintable() for line in page.split("\n"))
    assert "&lt;script&gt;�" in page
