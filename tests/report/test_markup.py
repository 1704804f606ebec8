"""Elements: everything that is not markup already is escaped, whatever people call their sets."""

from __future__ import annotations

import pytest
from markupsafe import Markup

from uwm.report.markup import clean, fit, join, tag, width_of


def test_children_and_attributes_are_escaped_and_markup_is_kept():
    made = tag("p", "<script>", tag("b", "a & b"), None, class_='"x"', data_name="it's")
    assert made == '<p class="&#34;x&#34;" data-name="it&#39;s">&lt;script&gt;<b>a &amp; b</b></p>'
    assert isinstance(made, Markup)


def test_attributes_without_a_value_are_left_out_and_void_elements_have_no_end():
    assert tag("p", class_=None) == "<p></p>"
    assert tag("img", src="x", width=3) == '<img src="x" width="3"/>'


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (-0.001, "0"), (2.345678, "2.35"), (-3.5, "-3.5"), (7, "7"), (100.0, "100")]
)
def test_numbers(value, text):
    assert tag("i", x=value) == f'<i x="{text}"></i>'


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
    assert clean(text) == shown
    assert tag("p", text) == f"<p>{shown}</p>"
    join([text]).encode()


def test_text_is_cut_to_a_width():
    assert fit("short", 100, 12) == "short"
    cut = fit("n" * 100, 100, 12)
    assert cut.endswith("…")
    assert len(cut) > 10
    assert width_of(cut, 12) <= 100
    assert len(fit("武" * 100, 100, 12)) < len(cut)
