"""The tables of a comparison, each read back from its format, and the plot."""

from __future__ import annotations

import csv
import io
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from uwm.comparison.figures import Figure, Row
from uwm.comparison.plot import draw
from uwm.comparison.table import columns, csv_table, latex, markdown, terminal, tex
from uwm.errors import BadInput
from uwm.figures import PAIRED
from uwm.report.plotting import check_plotting

EXTRA = ("zero_shot", "zero_shot:safe", "zero_shot:unsafe")
PAIRS = {"test": 400, "unseen_style": 30}


def figure(value: float) -> Figure:
    return Figure((value, value - 0.05, value + 0.07), (value - 0.01, value + 0.01), (value - 0.3, -0.1, 0.2))


def row(method: str, at: tuple | None = None, *, value: float = 0.3, **costs) -> Row:
    return Row(method, at, {name: figure(value) for name in (*PAIRED, *EXTRA)}, runs=3, **costs)


ROWS = [
    row("none"),
    row("uwm", ("mass", 0.05), value=0.4, seconds=1.25, peak_memory_mb=900, changed=1234.0),
    row("uwm", ("mass", 0.1), value=0.5, seconds=1.25, peak_memory_mb=900, changed=2345.5),
    row("a_b & 50 % | c", None, value=0.6, seconds=1500.0, peak_memory_mb=12000, trained=1e6),
    row("random", ("mass", 0.05), value=0.35, seconds=1.0, changed=1234.0),
    row("safe-clip", ("epoch", 4), value=0.7, seconds=99.0, trained=1e6),
    row("safe-clip", None, value=0.8, seconds=120.0, trained=1e6),
]
TABLES = {"test": ROWS, "unseen_style": ROWS}


def cells(text: str) -> list[list[str]]:
    """The first Markdown table of a text as rows of cells."""
    lines = text.split("\n\n")[2 if text.startswith("#") else 1].splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned as it stands
    return [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_csv_has_every_figure_with_interval_spread_and_difference():
    read = [*csv.DictReader(io.StringIO(csv_table(TABLES)))]
    assert [(r["set"], r["method"], r["by"], r["at"]) for r in read[:3]] == [
        ("test", "none", "", ""),
        ("test", "uwm", "mass", "0.05"),
        ("test", "uwm", "mass", "0.1"),
    ]
    assert len(read) == 2 * len(ROWS)
    ends = ("", "_low", "_high", "_seed_min", "_seed_max", "_difference", "_difference_low", "_difference_high")
    for name in (*PAIRED, *EXTRA):
        own = ROWS[1].figures[name]
        assert [float(read[1][name + end]) for end in ends] == [*own.value, *own.seeds, *own.difference]
    assert (read[1]["seconds"], read[1]["changed"], read[1]["trained"], read[1]["seeds"]) == ("1.25", "1234.0", "", "3")


def test_markdown_has_intervals_and_every_row():
    text = markdown(TABLES, PAIRS, ["uwm seed 0: odd"])
    assert "## test (400 pairs, 3 seeds)" in text
    assert "## unseen_style (30 pairs, 3 seeds)" in text
    assert text.endswith("- uwm seed 0: odd\n")
    head, rule, *body = cells(text)
    assert all(re.fullmatch(r"-+:?", cell) for cell in rule)
    assert [r[0] for r in body] == [r.method for r in ROWS]
    assert [r[1] for r in body] == ["", "τ 0.05", "τ 0.1", "", "τ 0.05", "epoch 4", ""]
    table = [dict(zip(head, r, strict=True)) for r in body]
    assert table[1]["GS"] == "40.0 [35.0, 47.0]"
    for name in ("PU", "P_ts", "R@1 Tu→V∪", "unsafe top-1 Vu→T∪", "zero-shot", "zero-shot, unsafe classes"):
        assert table[3][name] == "60.0 [55.0, 67.0]"
    assert (table[0]["seconds"], table[1]["seconds"], table[3]["seconds"]) == ("–", "1.2", "1,500")
    assert (table[1]["entries changed"], table[3]["parameters trained"]) == ("1,234", "1,000,000")
    assert "device MB" not in head


def test_the_terminal_shows_the_headline_figures():
    head, _, *body = cells(terminal(TABLES, PAIRS))
    assert head[2:9] == ["GS", "PU", "R@1 Ts→Vs", "R@1 Vs→Ts", "R@1 Tu→V∪", "R@1 Vu→T∪", "zero-shot"]
    assert "P_ts" not in head
    assert body[1][2] == "40.0 ±6.0"
    assert "not measured" not in terminal(TABLES, PAIRS)
    assert max(map(len, terminal(TABLES, PAIRS).split("\n\n")[1].splitlines())) < 200


def test_latex_is_balanced_and_escaped():
    text = latex(TABLES, PAIRS)
    opened, closed = (re.findall(rf"\\{word}{{(\w+\*?)}}", text) for word in ("begin", "end"))
    assert sorted(opened) == sorted(closed)
    assert opened.count("tabular") == 2
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.count("$") % 2 == 0
    for block in text.split("\\begin{tabular}")[1:]:
        columns_of = len(re.match(r"{(\w+)}", block)[1])
        lines = [line for line in block.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 1 + len(ROWS)
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns_of - 1}
        assert [block.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
    assert r"a\_b \& 50 \% \textbar{} c" in text
    assert r"unseen\_style (30 pairs" in text
    text.replace("τ", "").encode("ascii")


@pytest.mark.parametrize("text", ["\\", "a{b}", "100 % & # $ _ ^ ~", "<|>"])
def test_every_sign_of_latex_is_escaped(text):
    shown = tex(text)
    assert not re.search(r"(?<!\\)[%&#_^~]", shown.replace("{}", ""))
    assert tex("plain text 1.0") == "plain text 1.0"


def test_figures_that_say_most_come_first():
    found = columns(ROWS)
    assert found[:2] == ["GS", "PU"]
    assert sorted(found) == sorted(ROWS[0].figures)


# ---------------------------------------------------------------- the plot


@pytest.fixture(scope="module")
def drawn():
    return draw(ROWS, "test, 400 pairs")


def test_the_plot_is_the_same_bytes_every_time(drawn):
    assert draw(ROWS, "test, 400 pairs") == drawn
    assert draw(ROWS[:-1], "test, 400 pairs") != drawn


def test_the_plot_is_a_picture_as_wide_as_a_page(drawn):
    with Image.open(io.BytesIO(drawn["png"])) as picture:
        picture.load()
        assert picture.width == 1440
        assert 800 < picture.height < 1600
    assert ET.fromstring(drawn["svg"]).tag.endswith("svg")


def test_without_zero_shot_the_plot_has_one_row_of_panels(drawn):
    less = [Row(r.method, r.at, {n: f for n, f in r.figures.items() if n != "zero_shot"}) for r in ROWS]
    with Image.open(io.BytesIO(draw(less, "x")["png"])) as one, Image.open(io.BytesIO(drawn["png"])) as two:
        assert one.height < two.height - 300


def test_the_plot_leaves_matplotlib_as_it_was(drawn, monkeypatch):
    import matplotlib

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other tests' libraries import it
    before = dict(matplotlib.rcParams)
    draw(ROWS, "x")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match=r"uwm\[plot\]"):
        check_plotting()
