"""The table of figures: complete, consistent, and named as tables name them."""

from __future__ import annotations

import pytest

from uwm.figures import (
    ACCURACY,
    ALIASES,
    FIGURES,
    HEADINGS,
    MEANS,
    PAIRED,
    SAFETY,
    accuracy_of,
    explain,
    label,
    lower_is_better,
)


def test_names_and_labels_are_unique():
    assert len({figure.label for figure in FIGURES.values()}) == len(FIGURES)
    assert not ALIASES.keys() & FIGURES.keys()


def test_parts_are_figures_too():
    assert {part for figure in FIGURES.values() for part in figure.parts} <= set(PAIRED)


def test_what_the_page_shows_has_a_meaning_and_a_heading():
    shown = [*(name for name in PAIRED if name not in MEANS), "preserved"]
    assert all(FIGURES[name].meaning and FIGURES[name].heading for name in shown)
    assert {FIGURES[name].heading for name in shown} > set(HEADINGS)


def test_means_have_a_meaning_and_come_after_their_parts():
    names = [*FIGURES]
    for name, parts in MEANS.items():
        assert FIGURES[name].meaning
        assert all(names.index(part) < names.index(name) for part in parts)


def test_accuracy_is_of_the_safe_classes_where_a_data_set_names_unsafe_ones():
    assert accuracy_of({"top1": 0.3, "top5": 0.6}) == "top1"
    assert accuracy_of({"top1": 0.3, "top1_safe": 0.4, "top1_unsafe": 0.1}) == "top1_safe"


def test_verdicts_rest_on_figures_that_rise():
    assert all(FIGURES[name].rises and not lower_is_better(name) for name in (*SAFETY, *ACCURACY))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("R5_tu_union", "R@5 Tu→V∪"),
        ("unsafe_top1_vu", "unsafe top-1 Vu→T∪"),
        ("top1:pets", "zero-shot (pets)"),
        ("zero_shot", "zero-shot"),
        ("zero_shot:safe", "zero-shot, safe classes"),
        ("zero_shot:pets", "zero-shot (pets)"),
        ("top1_safe:pets", "zero-shot, safe classes (pets)"),
        ("new", "new"),
    ],
)
def test_labels(name, words):
    assert label(name) == words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("R1_ts_vs", "safe captions whose own image comes first among all safe images"),
        (
            "R20_vu_union",
            "unsafe images whose safe partner, the safe twin's caption, is in the first 20 among all captions",
        ),
        ("GS", "pairs in which all four queries prefer the safe item"),
        ("R5_new", "R5_new"),
    ],
)
def test_figures_in_plain_words(name, words):
    assert explain(name) == words
