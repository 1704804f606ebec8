"""Figures as rows of cells."""

from __future__ import annotations

from dataclasses import replace

from documents_by_hand import layer

from uwm.evaluation import EvalResult
from uwm.report import layer_table, rows


def result(gs):
    return EvalResult(8, {"GS": (gs, gs - 0.1, gs + 0.1), "R1_ts_vs": (1.0, 1.0, 1.0)}, {})


def classified(top1):
    return {"top1": top1, "top5": 1.0, "mean_per_class": top1, "pictures": 9, "top1_interval": [top1 - 0.1, 1.0]}


def test_rows_one_a_figure_one_column_a_result():
    assert rows({"before": result(0.25), "after": result(0.5)}) == [
        ["", "before", "after"],
        ["GS", "25.0 [15.0, 35.0]", "50.0 [40.0, 60.0]"],
        ["R@1 Ts→Vs", "100.0 [100.0, 100.0]", "100.0 [100.0, 100.0]"],
    ]


def test_rows_of_zero_shot_accuracy():
    shapes, more = classified(0.9) | {"top1_unsafe": 0.0}, classified(0.5)
    one = replace(result(0.25), zero_shot={"shapes": shapes})
    assert rows({"model": one})[3:] == [
        ["zero-shot (shapes)", "90.0 [80.0, 100.0]"],
        ["zero-shot, unsafe classes (shapes)", "0.0"],
    ]
    two = replace(one, zero_shot={"shapes": shapes, "more": more})
    assert rows({"model": two})[5:] == [
        ["zero-shot (more)", "50.0 [40.0, 100.0]"],
        ["zero-shot, mean of 2 sets", "70.0"],
    ]


def test_layer_table():
    scaled = layer(30, 4000)
    assert layer_table({"vision.1.fc2": scaled}) == [
        ["tensor", "change", "entries", "of", "share"],
        ["vision.1.fc2", "negated", "30", "4000", "0.750 %"],
    ]
    added = scaled | {"words": "changed by a matrix of rank 1", "entries": 4000, "rank": 1, "relative_norm": 0.0125}
    assert layer_table({"vision.1.fc2": scaled, "vision.proj": added})[1:] == [
        ["vision.1.fc2", "negated", "30", "4000", "0.750 %", ""],
        ["vision.proj", "changed by a matrix of rank 1", "4000", "4000", "100.000 %", "1.25 %"],
    ]
