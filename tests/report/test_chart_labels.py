"""Labels of a chart lie over no other label, over no point and within their frame."""

from __future__ import annotations

import itertools
import random

import pytest

from uwm.report.labels import FARTHER, MARK, Box, placed

FRAME = Box(30, 20, 360, 300)


def marks(places):
    return [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in places]


@pytest.mark.parametrize("seed", range(5))
def test_no_label_lies_over_another_or_over_a_point_or_outside(seed):
    draw = random.Random(seed)
    places = [(draw.uniform(30, 360), draw.uniform(180, 290)) for _ in range(50)]
    texts = [[f"method number {n}", str(n)] for n in range(50)]
    found = placed(places, texts, FRAME, 12)
    there = [label for label in found if label]
    assert 10 < len(there) < 50, "some have no room"
    assert any(label.text.isdigit() for label in there), "the number where the name has no room"
    assert all(FRAME.holds(label.box) for label in there)
    assert not any(one.box.meets(other.box) for one, other in itertools.combinations(there, 2))
    assert not any(label.box.meets(mark) for label in there for mark in marks(places))


def test_a_label_stands_right_of_its_point_and_left_where_the_frame_ends():
    right, left = placed([(100, 100), (340, 200)], [["name"], ["name"]], FRAME, 12)
    assert right.box.left > 100
    assert left.box.right < 340


def test_what_comes_first_chooses_first():
    crowd = [(100.0, 100.0)] * 20
    found = placed(crowd, [["a long name"]] * 20, FRAME, 12)
    assert found[0] is not None
    assert 1 < sum(label is not None for label in found) <= 8 + len(FARTHER)


def test_a_point_without_a_text_has_no_label():
    assert placed([(100, 100)], [[]], FRAME, 12) == [None]
