"""Tables line up."""

from __future__ import annotations

from uwm.text_tables import aligned_markdown, clean, interval, markdown_table, text_facts, text_table


def test_text_table_first_column_left_the_others_right():
    assert text_table([["name", "n"], ["a", "10"], ["long name", "3"]]) == "name        n\na          10\nlong name   3"


def test_text_table_has_no_trailing_spaces():
    assert text_table([["x", ""], ["long", ""]]) == "x\nlong"


def test_markdown_table():
    assert markdown_table([["", "a"], ["x", "1"]]) == "|  | a |\n|---|---|\n| x | 1 |"


def test_aligned_markdown_lines_up_and_escapes_bars():
    lines = aligned_markdown([["a|b", "n"], ["c", "10"]], 1).splitlines()
    assert lines == ["| a\\|b |  n |", "|------|---:|", "| c    | 10 |"]


def test_clean_text_is_one_line_without_control_characters():
    assert clean("a\nb\x1b[0m\u202ec") == "a\ufffdb\ufffd[0m\ufffdc"


def test_an_interval_is_in_percent():
    assert interval((0.123, 0.1, 0.2)) == "12.3 [10.0, 20.0]"


def test_facts_are_a_table_and_numbers_stand_below_each_other():
    facts = {"kind": "a\x1b[31m", "with_text": 8, "splits": {"calib": 600, "a\u202eb": 7}, "files": ["x", "y"],
             "none_of_it": {}, "edited": False, "recipe": {"mass": {"text": 0.1}, "rule": None}}  # fmt: skip
    assert text_facts(facts).splitlines() == [
        "kind        a\ufffd[31m",
        "with text   8",
        "splits      calib  600",
        "            a\ufffdb      7",
        "files       x, y",
        "none of it  none",
        "edited      no",
        "recipe      mass  text 0.1",
        "            rule  none",
    ]
