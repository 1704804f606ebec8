"""Charts: marks stand where their numbers say, everything is named, and the SVG is well-formed."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from documents_by_hand import NASTY

from uwm.report.charts import PERCENT, WIDTH, Row, Scale, bars, dots, heat_map, histograms

SVG = "{http://www.w3.org/2000/svg}"
SERIES = ("before", "after", "random")
ROWS = [
    Row("A heading"),
    Row("GS", {"before": (0.25, 0.1, 0.5), "after": (0.5, 0.4, 0.75), "random": (0.0, 0.0, 0.0)}),
    Row("PS", {"after": (1.0, 1.0, 1.0)}),
]


def parsed(chart):
    root = ET.fromstring(ET.tostring(chart))
    assert (root.tag, root.get("role")) == (f"{SVG}svg", "img")
    assert root[0].tag == f"{SVG}title"
    assert root[0].text
    assert root[1].tag == f"{SVG}desc"
    assert root[1].text
    assert root.get("viewBox").startswith(f"0 0 {WIDTH} ")
    return root


def of_class(root, name):
    return [element for element in root.iter() if name in (element.get("class") or "").split()]


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


# ---------------------------------------------------------------- scales


@pytest.mark.parametrize(
    "values", [(-0.062, 0.045), (0.0, 0.0), (0.3,), (-0.9, 0.9), (0.001, -0.0004), (-0.5,)], ids=str
)
def test_scales_cover_the_values_and_zero_with_few_round_ticks(values):
    scale = Scale.around(values, "points")
    assert scale.low <= min(0, *values) <= max(0, *values) <= scale.high
    assert 2 <= len(scale.ticks) <= 9
    assert any(abs(tick) < 1e-12 for tick in scale.ticks)
    steps = {round(b - a, 12) for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)}
    assert len(steps) == 1


@pytest.mark.parametrize(("low", "high"), [(4.1, 49.3), (10, 10), (37, 39), (-3, 20), (99, 100)])
def test_scales_over_values_need_not_begin_at_zero(low, high):
    scale = Scale.over(low, high)
    step = scale.ticks[1] - scale.ticks[0]
    assert scale.low <= low <= high <= scale.high
    assert low - scale.low < step
    assert 2 <= len(scale.ticks) <= 9


def test_ticks_are_labelled_in_the_unit():
    root = parsed(dots("t", "d", ROWS, SERIES, Scale.around((-0.1, 0.1), "change in points")))
    assert {"−10", "0", "10", "change in points"} <= set(texts(root))


# ---------------------------------------------------------------- dots


def test_dots_stand_where_their_numbers_say():
    root = parsed(dots("t", "d", ROWS, SERIES, PERCENT))
    zero, one = (next(float(t.get("x")) for t in of_class(root, "tick") if t.text == text) for text in ("0", "100"))
    circles = {c.get("class"): c for c in of_class(root, "mark") if c.tag == f"{SVG}circle"}
    assert float(circles["mark s0"].get("cx")) == pytest.approx(zero + 0.25 * (one - zero), abs=0.02)
    whisker = of_class(root, "whisker")[1]
    assert float(whisker.get("x1")) == pytest.approx(zero + 0.4 * (one - zero), abs=0.02)
    assert float(whisker.get("x2")) == pytest.approx(zero + 0.75 * (one - zero), abs=0.02)
    assert float(whisker.get("y1")) == float(of_class(root, "mark")[1].get("cy"))


def test_a_mark_for_every_number_and_none_for_headings():
    root = parsed(dots("t", "d", ROWS, SERIES, PERCENT))
    assert len(of_class(root, "mark")) == len(of_class(root, "whisker")) == 4
    assert [e.text for e in of_class(root, "head")] == ["A heading"]


def test_series_differ_by_shape_not_only_by_colour():
    made = of_class(parsed(dots("t", "d", ROWS[:2], SERIES, PERCENT)), "mark")
    assert [e.tag.removeprefix(SVG) for e in made] == ["circle", "circle", "path"]


def test_series_that_no_row_has_take_no_room():
    few = [Row("x", {"after": (0.1, 0.0, 0.2)})]
    heights = [float(parsed(dots("t", "d", few, s, PERCENT)).get("height")) for s in (SERIES, ("before", "after"))]
    assert heights[0] == heights[1]


# ---------------------------------------------------------------- bars


def test_bars_are_as_long_as_their_numbers_and_start_at_zero():
    root = parsed(bars("t", "d", ROWS[1:], SERIES, PERCENT))
    zero, one = (next(float(t.get("x")) for t in of_class(root, "tick") if t.text == text) for text in ("0", "100"))
    first, second, none, full = of_class(root, "bar")
    assert {float(bar.get("x")) for bar in (first, second, none, full)} == {zero}
    assert float(second.get("width")) == pytest.approx(2 * float(first.get("width")), abs=0.02)
    assert float(full.get("width")) == pytest.approx(one - zero, abs=0.02)
    assert {"25.0", "50.0", "0.0", "100.0"} <= set(texts(root))


def test_bars_have_a_whisker_only_where_there_is_an_interval():
    assert len(of_class(parsed(bars("t", "d", ROWS[1:2], SERIES, PERCENT)), "edge")) == 2 * 3
    assert of_class(parsed(bars("t", "d", ROWS[2:], SERIES, PERCENT)), "edge") == []


@pytest.mark.parametrize("name", NASTY)
def test_names_are_escaped_and_kept_within_the_chart(name):
    values = {"before": (0.5, 0.4, 0.6)}
    for chart in (bars("t", name, [Row(name, values, "3 pairs")], SERIES, PERCENT), dots(name, "d", [Row(name, values)], SERIES, PERCENT)):  # noqa: E501  # fmt: skip
        assert all(len(text) <= 60 for text in texts(parsed(chart)))


# ---------------------------------------------------------------- heat map


def test_heat_map_cells_are_fuller_the_larger_the_share():
    shares = {"vision.0.fc2": 0.01, "vision.2.fc2": 0.04, "vision.1.out_proj": 0.02}
    root = parsed(heat_map("t", "d", shares, top=0.04))
    cells = {group[0].text: group for group in root.iter(f"{SVG}g")}
    opacity = {name: float(of_class(cell, "heat")[0].get("fill-opacity")) for name, cell in cells.items()}
    assert list(opacity) == ["vision.0.fc2: 1.00 %", "vision.2.fc2: 4.00 %", "vision.1.out_proj: 2.00 %"]
    assert opacity["vision.0.fc2: 1.00 %"] < opacity["vision.1.out_proj: 2.00 %"] < opacity["vision.2.fc2: 4.00 %"]
    assert {"1.00", "4.00", "2.00", "out_proj", "fc2", "block"} <= set(texts(root))


def test_heat_map_rows_are_slots_and_columns_blocks():
    root = parsed(heat_map("t", "d", {"text.0.out_proj": 0.1, "text.1.out_proj": 0.1, "text.1.fc2": 0.1}, 0.1))
    boxes = [of_class(group, "heat")[0] for group in root.iter(f"{SVG}g")]
    x, y = ([float(box.get(axis)) for box in boxes] for axis in "xy")
    assert x[0] < x[1] == x[2]
    assert y[0] == y[1] < y[2]


def test_a_heat_map_of_many_blocks_fits_and_shows_no_numbers_in_its_cells():
    root = parsed(heat_map("t", "d", {f"vision.{n}.fc2": 0.02 for n in range(48)}, 0.02))
    boxes = [of_class(group, "heat")[0] for group in root.iter(f"{SVG}g")]
    assert len(boxes) == 48
    assert max(float(b.get("x")) + float(b.get("width")) for b in boxes) <= WIDTH
    assert "2.00" not in texts(root)


def test_a_heat_map_of_no_edit_at_all():
    parsed(heat_map("t", "d", {"vision.0.fc2": 0.0}, 0.0))


# ---------------------------------------------------------------- histograms


def test_histogram_heights_are_the_counts():
    counts = [0] * 100
    counts[60], counts[62] = 10, 5
    root = parsed(histograms("t", "d", [("before", {"safe": counts})], (58, 64, 10)))
    (line,) = of_class(root, "outline")
    bottom = float(re.match(r"M\S+ (\S+?)V", line.get("d"))[1])
    heights = [bottom - float(value) for value in re.findall(r"V([\d.]+)h", line.get("d"))]
    assert len(heights) == 64 - 58
    assert heights[2] == 2 * heights[4] > 0
    assert heights[0] == heights[1] == heights[3] == heights[5] == 0


def test_histograms_share_their_axes():
    one, two = [0] * 50 + [3] * 50, [0] * 50 + [9] * 50
    root = parsed(histograms("t", "d", [("a", {"safe": one}), ("b", {"safe": two})], (50, 100, 9)))
    first, second = (len(set(re.findall(r"h([\d.]+)", e.get("d")))) for e in of_class(root, "outline"))
    assert first == second == 1
    assert texts(root).count("cosine") == 2
    assert "9" in texts(root)
