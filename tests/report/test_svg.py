"""Elements of charts: everything that others name is text in them, whatever they call it."""

from __future__ import annotations

from xml.etree.ElementTree import tostring

import pytest

from uwm.report.svg import fit, tag, width_of


def written(element):
    return tostring(element, "unicode")


def test_text_and_attributes_are_escaped():
    made = tag("g", "<script>", tag("text", "a & b"), None, class_='"x"', data_name="it's")
    assert written(made) == '<g class="&quot;x&quot;" data-name="it\'s">&lt;script&gt;<text>a &amp; b</text></g>'


def test_attributes_without_a_value_are_left_out_and_lists_of_children_are_flattened():
    assert written(tag("g", [None, [tag("text", "a")]], [], class_=None)) == "<g><text>a</text></g>"


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (-0.001, "0"), (2.345678, "2.35"), (-3.5, "-3.5"), (7, "7"), (100.0, "100")]
)
def test_numbers(value, text):
    assert tag("g", x=value).get("x") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\nc", "a�b�c"),
        ("\ud800", "�"),
        ("\u202egnp.exe\u202c", "�gnp.exe�"),
        ("سلاح", "سلاح"),
        ("👨‍👩‍👧 e\u0301", "👨‍👩‍👧 e\u0301"),
    ],
)
def test_what_no_page_can_hold_is_replaced(text, shown):
    assert written(tag("text", text)) == f"<text>{shown}</text>"
    assert tag("text", x=text).get("x") == shown


def test_text_is_cut_to_a_width():
    assert fit("short", 100, 12) == "short"
    cut = fit("n" * 100, 100, 12)
    assert cut.endswith("…")
    assert len(cut) > 10
    assert width_of(cut, 12) <= 100
    assert len(fit("武" * 100, 100, 12)) < len(cut)
