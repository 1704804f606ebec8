"""Two halves of a data set share no picture, hold all of them, and hold every class alike."""

from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from uwm.errors import BadInput
from uwm.knowledge import DataSet
from uwm.knowledge.halves import halves as draw_halves


class Numbered:
    """Pictures that are as wide as their number; classes of uneven size."""

    def __init__(self, targets):
        self.targets = targets
        self.samples = [(f"{n}.png", target) for n, target in enumerate(targets)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return Image.new("RGB", (index + 1, 1)), self.targets[index]


class Nameless:
    """Pictures whose classes are known only when they are read."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Image.new("RGB", (index + 1, 1)), index % 3


TARGETS = [n * n % 7 % 4 for n in range(101)]


def data_of(pictures):
    return DataSet("noise", pictures, ("dog", "cat", "car", "cup"), ("a {}",), frozenset({"cat"}))


def read(data):
    """Number -> class of every picture."""
    found = [data.read(n) for n in range(len(data))]
    return {picture.width - 1: target for picture, target in found}


@pytest.mark.parametrize("pictures", [Numbered(TARGETS), Nameless(101)], ids=["classes known", "classes unknown"])
def test_halves_are_disjoint_and_whole(pictures):
    data = data_of(pictures)
    choosing, measuring = (read(half) for half in draw_halves(data, seed=5))
    assert not choosing.keys() & measuring.keys()
    assert choosing | measuring == read(data)
    assert (len(choosing), len(measuring)) == (50, 51)
    assert [*choosing] == sorted(choosing)
    assert choosing.keys() != {*range(0, 101, 2)}


def test_what_one_half_has_read_the_other_does_not_take_for_its_own():
    data = data_of(Nameless(30))
    choosing, measuring = draw_halves(data, seed=5)
    whole = {picture.width: target for picture, target in map(data.read, range(30))}
    for half, other in ((choosing, measuring), (measuring, choosing)):
        read(other)
        assert half.classes == [whole[half.read(n)[0].width] for n in range(len(half))]


def test_every_class_is_halved():
    choosing, measuring = (Counter(read(half).values()) for half in draw_halves(data_of(Numbered(TARGETS)), seed=5))
    assert choosing.keys() == measuring.keys() == {*TARGETS}
    assert all(abs(choosing[target] - measuring[target]) <= 1 for target in choosing)


def test_big_data_sets_are_chosen_by_some_of_every_class(monkeypatch):
    monkeypatch.setattr("uwm.knowledge.halves.MOST", 20)
    data = data_of(Numbered([n % 10 for n in range(400)]))
    choosing, measuring = (read(half) for half in draw_halves(data, seed=5))
    assert Counter(choosing.values()) == dict.fromkeys(range(10), 2)
    assert len(measuring) == 380
    assert choosing | measuring == read(data)
    assert len({number // 40 for number in choosing}) > 6  # from everywhere in the set


def test_the_seed_draws_the_halves():
    data = data_of(Numbered(TARGETS))
    drawn = [read(draw_halves(data, seed)[0]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_halves_know_of_their_pictures_what_the_whole_knows():
    data = data_of(Numbered(TARGETS))
    for half in draw_halves(data, seed=5):
        assert half.pictures.targets == [*read(half).values()]
        assert half.pictures.samples == [(f"{n}.png", target) for n, target in read(half).items()]
        assert (half.name, half.class_names, half.unsafe_classes) == (data.name, data.class_names, data.unsafe_classes)
    for half in draw_halves(data_of(Nameless(9)), seed=5):
        assert not hasattr(half.pictures, "targets")
        assert not hasattr(half.pictures, "anything")


def test_one_picture_cannot_be_halved():
    with pytest.raises(BadInput, match="noise: 1 picture; at least 2 are needed, to choose by one and measure another"):
        draw_halves(data_of(Nameless(1)), seed=0)
