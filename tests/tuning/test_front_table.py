"""A front's tables, each read back from its format."""

from __future__ import annotations

import copy
import csv
import io
import json
import re

import pytest
from made_up_front import made_up_front

from uwm.tuning.table import (
    WIDTH,
    cells,
    csv_table,
    markdown,
    measures,
    point_facts,
    point_line,
    summary,
    terminal,
)  # fmt: skip

FRONT = made_up_front(60, held_out=("held-out", "unseen"))
KNEE = FRONT["points"][FRONT["knee"] - 1]


def tables(text):
    """Every Markdown table of a text as rows of cells."""
    found = re.findall(r"(?:^\|.*\n?)+", text, re.M)
    return [[[c.strip() for c in line[1:-1].split("|")] for line in t.splitlines() if "--" not in line] for t in found]


def number(text):
    return float(text.partition(" ")[0].replace("−", "-"))


def test_markdown_has_every_point_on_every_set():
    first, second = tables(markdown(FRONT))
    for table, name in ((first, "held-out"), (second, "unseen")):
        head, unedited, *body = table
        assert unedited[1] == "unedited"
        assert [row[0] for row in body] == [f"{p['number']}{' (knee)' if p is KNEE else ''}" for p in FRONT["points"]]
        for row, point in zip(body, FRONT["points"], strict=True):
            of = dict(zip(head, row, strict=True))
            there = point["held_out"][name]
            assert number(of["safety, cross-validation"]) == pytest.approx(point["objective"], abs=0.051)
            assert number(of["loss (%), cross-validation"]) == pytest.approx(point["loss"], abs=0.051)
            for label, figure in (("GS", "GS"), ("unsafe top-1", "unsafe_top1"), ("safe R@1", "R1_safe")):
                mean, low, high = (f"{100 * v:.1f}" for v in there["figures"][figure])
                assert of[label] == f"{mean} [{low}, {high}]"
            known = (there["zero_shot"]["seen"]["top1_safe"] + there["zero_shot"]["pets"]["top1"]) / 2
            assert of["zero-shot, safe classes"] == f"{100 * known:.1f}"
            assert of["zero-shot, unsafe classes"] == f"{100 * there['zero_shot']['seen']['top1_unsafe']:.1f}"


def test_markdown_says_what_was_done():
    text = markdown(FRONT)
    assert text.startswith("# Safety against loss of knowledge\n\n60 of 63 trials could be measured.")
    assert "87 a minute (repel " in text
    assert "chosen by cross-validation: 480 pairs in 3 folds" in text
    assert "a little too good, because the best of many trials are picked" in text
    assert "measured once on held-out pairs (held-out, unseen)" in text
    assert f"--point {FRONT['knee']} -o OUT" in text
    assert text.endswith("- 3 trials could not be measured.\n")


def test_without_held_out_pairs_the_tables_are_of_cross_validation():
    front = made_up_front(20, held_out=())
    assert "There were no held-out pairs, so no figure is free of that choice." in summary(front)
    (table,) = tables(markdown(front))
    assert [row[3] for row in table[:2]] == ["safety", "29.5 [25.4, 33.6]"]
    assert terminal(front).startswith("cross-validation (480 pairs)\n")


def test_points_of_loss_and_an_objective_to_lower_are_worded_so():
    front = copy.deepcopy(FRONT)
    front["loss"] = {"terms": ["R1_ts_vs"], "unit": "pt"}
    front["objective"] = {"text": "unsafe_top1", "label": "unsafe top-1", "lower_is_better": True}
    text = " ".join(summary(front))
    assert "No other trial has a lower unsafe top-1" in text
    assert "the greatest fall of any of R1_ts_vs, in points." in text
    head = cells(front, "held-out")[0]
    assert (head[4], head.count("unsafe top-1")) == ("loss (pt), cross-validation", 1)  # it is the objective


def test_one_data_set_without_unsafe_classes_has_its_interval():
    front = made_up_front(20, data_sets=("pets",))
    point = front["points"][0]
    there = point["held_out"]["held-out"]
    found = measures(front, there, front["baseline"]["held_out"]["held-out"])
    pets = there["zero_shot"]["pets"]
    assert found["zero_shot"] == pytest.approx([100 * pets["top1"], *(100 * v for v in pets["top1_interval"])])
    assert "zero_shot:unsafe" not in found
    assert "zero-shot" in cells(front, "held-out")[0]
    assert not any("zero-shot" in head for head in cells(made_up_front(20, data_sets=()), "held-out")[0])


def test_the_terminal_is_no_wider_than_it_should_be():
    long = copy.deepcopy(FRONT)
    for number, trial in enumerate([*long["tried"], *long["points"]]):
        trial["settings"] = {**trial["settings"], "layers": f"{number} " + "out_proj,fc2," * 9}
    for front in (FRONT, long):
        lines = terminal(front).splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert max(map(len, lines)) > 90
        assert sum(line.startswith(f"{FRONT['knee']}* ") for line in lines) == 2
    assert "…" in terminal(long)


def test_csv_has_every_figure_on_every_set():
    read = [*csv.DictReader(io.StringIO(csv_table(FRONT)))]
    assert len(read) == 3 * (1 + len(FRONT["points"]))
    assert [row["set"] for row in read[:: 1 + len(FRONT["points"])]] == ["cross-validation", "held-out", "unseen"]
    for row in read:
        point = FRONT["points"][int(row["point"]) - 1] if row["point"] else FRONT["baseline"]
        result = point["cross_validated"] if row["set"] == "cross-validation" else point["held_out"][row["set"]]
        for name, values in result["figures"].items():
            assert [float(row[name + end]) for end in ("", "_low", "_high")] == values
        assert float(row["top1_safe:seen"]) == result["zero_shot"]["seen"]["top1_safe"]
        assert float(row["top1:pets"]) == result["zero_shot"]["pets"]["top1"]
        assert "top1_interval:pets" not in row
        if row["point"]:
            assert json.loads(row["settings"]) == point["settings"]
            assert (row["knee"], int(row["trial"])) == (str(point is KNEE).lower(), point["trial"])
        if row["point"] and row["set"] == "cross-validation":
            assert float(row["objective"]) == pytest.approx(point["objective"])
            assert float(row["loss"]) == pytest.approx(point["loss"])


def test_one_point_in_one_line():
    line = point_line(FRONT, KNEE)
    assert "\n" not in line
    about = re.match(r"point (\d+) \(the knee\): (\w+) share=\S+ strength=\S+; cross-validation: safety (\S+) %", line)
    assert about[2] == KNEE["method"]
    assert (int(about[1]), float(about[3])) == (KNEE["number"], pytest.approx(KNEE["objective"], abs=0.051))
    gs = [f"{100 * KNEE['held_out'][name]['figures']['GS'][0]:.1f}" for name in ("held-out", "unseen")]
    assert re.findall(r"GS (\S+) %", line) == gs
    facts = point_facts(FRONT, KNEE)
    assert (facts["knee"], facts["settings"]) == (True, KNEE["settings"])
    assert facts["held_out"]["unseen"]["GS"][0] == 100 * KNEE["held_out"]["unseen"]["figures"]["GS"][0]
    assert "the knee" not in point_line(FRONT, FRONT["points"][0])


def test_what_was_not_measured_is_a_dash():
    front = copy.deepcopy(FRONT)
    del front["points"][0]["held_out"]["unseen"]["figures"]["GS"]
    assert cells(front, "unseen")[2][7] == "–"
    assert "GS" not in point_line(front, front["points"][0]).split("unseen:")[1]
