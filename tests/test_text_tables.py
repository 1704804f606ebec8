"""Tables line up."""

from __future__ import annotations

from uwm.text_tables import markdown_table, text_table


def test_text_table_first_column_left_the_others_right():
    assert text_table([["name", "n"], ["a", "10"], ["long name", "3"]]) == "name        n\na          10\nlong name   3"


def test_text_table_has_no_trailing_spaces():
    assert text_table([["x", ""], ["long", ""]]) == "x\nlong"


def test_markdown_table():
    assert markdown_table([["", "a"], ["x", "1"]]) == "|  | a |\n|---|---|\n| x | 1 |"
