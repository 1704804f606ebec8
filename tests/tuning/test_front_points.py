"""Which trials are on the front, where its knee is, and which point is picked."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_front import interval, made_up_front

from uwm.errors import BadInput
from uwm.tuning.points import choose_point, front_of, knee, listed, loss_of, objective_of, settings_words

FRONT = made_up_front(60)


def trial(objective, loss):
    return {"objective": objective, "loss": loss}


def places_the_slow_way(tried, lower):
    """All that nobody dominates, in the order of loss; of equal ones the first."""
    sign = -1 if lower else 1

    def as_good(a, b):
        return sign * a["objective"] >= sign * b["objective"] and a["loss"] <= b["loss"]

    def dominated(n):
        others = [(m, other) for m, other in enumerate(tried) if m != n]
        return any(as_good(other, tried[n]) and (not as_good(tried[n], other) or m < n) for m, other in others)

    return sorted((n for n in range(len(tried)) if not dominated(n)), key=lambda n: tried[n]["loss"])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-2, 6)), max_size=25), st.booleans())
def test_the_front_is_what_nobody_dominates(drawn, lower):
    tried = [trial(*one) for one in drawn]
    assert front_of(tried, lower) == places_the_slow_way(tried, lower)


def test_a_front_does_not_hang_on_the_order_of_trials():
    tried = [trial(a, b) for a, b in zip(range(20), range(20), strict=True)] + [trial(5, 9), trial(19, 20)]
    mixed = random.Random(1).sample(tried, len(tried))
    assert [mixed[n] for n in front_of(mixed)] == [tried[n] for n in front_of(tried)]


def test_the_knee_is_farthest_from_the_line_in_scaled_axes():
    points = [trial(10, 0), trial(30, 2), trial(34, 10), trial(50, 40)]  # above the line by 0.45, 0.35
    assert knee(points) == 2
    assert knee([trial(100 * p["objective"], p["loss"] / 7) for p in points]) == 2  # units do not count
    assert knee([trial(-p["objective"], p["loss"]) for p in points], lower_is_better=True) == 2


@pytest.mark.parametrize(
    ("points", "number"),
    [
        ([trial(1, 0)], 1),
        ([trial(1, 0), trial(2, 5)], 2),
        ([trial(0, 0), trial(1, 5), trial(9, 9)], 3),  # none above the line
        ([trial(0, 0), trial(5, 5), trial(9, 9)], 3),
    ],
)
def test_without_a_knee_the_last_point_is_it(points, number):
    assert knee(points) == number


def test_a_point_by_its_number_and_the_knee():
    assert choose_point(FRONT, "3")["number"] == 3
    assert choose_point(FRONT, " knee ")["number"] == FRONT["knee"]


@pytest.mark.parametrize("text", ["0", "99"])
def test_a_number_that_is_none_lists_the_points(text):
    with pytest.raises(BadInput, match=rf"--point {text}: no such point; there are 1 \(safety \d+\.\d %, loss .*knee"):
        choose_point(FRONT, text)


@pytest.mark.parametrize("text", ["", "best", "-1", "1.5", "²"])
def test_another_form_lists_the_points(text):
    with pytest.raises(BadInput, match=r"expected knee, a number, or max-loss=LOSS; there are 1 \(safety"):
        choose_point(FRONT, text)


def kept_the_slow_way(front, percent):
    """Numbers of points that lose no more of any figure of knowledge."""
    before = front["baseline"]["cross_validated"]
    kept = []
    for point in front["points"]:
        now = point["cross_validated"]
        pairs = [(now["figures"][n][0], before["figures"][n][0]) for n in ("R1_ts_vs", "R1_vs_ts")]
        pairs += [
            (now["zero_shot"][n][kind], before["zero_shot"][n][kind])
            for n, kind in (("seen", "top1_safe"), ("pets", "top1"))
        ]
        if all(a >= b * (1 - percent / 100) - 1e-12 for a, b in pairs):
            kept.append(point["number"])
    return kept


@pytest.mark.parametrize("percent", [1, 2, 5, 50])
def test_max_loss_is_the_best_point_within_the_budget(percent):
    kept = kept_the_slow_way(FRONT, percent)
    assert kept
    assert choose_point(FRONT, f"max-loss={percent}%")["number"] == kept[-1]
    assert {choose_point(FRONT, f"max-loss={p}%")["number"] for p in (1, 50)} == {
        kept_the_slow_way(FRONT, p)[-1] for p in (1, 50)
    }


def test_max_loss_goes_by_the_objective_and_its_direction():
    front = copy.deepcopy(FRONT)
    for point in front["points"]:
        point["objective"] = -point["objective"]
    assert choose_point(front, "max-loss=5%")["number"] == 1
    front["objective"]["lower_is_better"] = True
    assert choose_point(front, "max-loss=5%")["number"] == kept_the_slow_way(FRONT, 5)[-1]


def test_max_loss_reads_the_interval_of_a_change():
    found = choose_point(FRONT, "max-loss=GS.low>=+10pt")
    assert 100 * found["cross_validated"]["changes"]["GS"]["difference"][1] >= 10
    assert found["number"] == len(FRONT["points"])


def test_a_budget_that_no_point_keeps_lists_the_points():
    with pytest.raises(BadInput, match=r"no point keeps R1_ts_vs>=\+99pt; there are 1 \(safety"):
        choose_point(FRONT, "max-loss=R1_ts_vs>=+99pt")


def test_a_budget_of_another_form_is_told():
    with pytest.raises(BadInput, match=r"--point 'max-loss=2': --max-loss '2': write 2% of the baseline's value"):
        choose_point(FRONT, "max-loss=2")
    with pytest.raises(BadInput, match=r"--point .*no data set 'flowers'; there are seen, pets"):
        choose_point(FRONT, "max-loss=zero_shot:flowers=2%")
    with pytest.raises(BadInput, match=r"--point .*preserved"):
        choose_point(FRONT, "max-loss=preserved=2%")


def test_what_was_preserved_counts_where_it_was_measured():
    front = copy.deepcopy(FRONT)
    for result in (front["baseline"]["cross_validated"], *(p["cross_validated"] for p in front["points"])):
        result["figures"]["preserved"] = interval(1.0, 480)
    front["points"][-1]["cross_validated"]["figures"]["preserved"] = interval(0.5, 480)
    assert choose_point(front, "max-loss=40%")["number"] == len(front["points"]) - 1


def test_points_are_listed_with_objective_and_loss():
    first = FRONT["points"][0]
    loss = f"{first['loss']:.1f}".replace("-", "−")
    assert listed(FRONT).startswith(f"1 (safety {first['objective']:.1f} %, loss {loss} %), 2 (")
    assert listed(FRONT).count("; the knee)") == 1


def test_loss_is_the_greatest_fall_of_any_term():
    before, point = FRONT["baseline"]["cross_validated"], FRONT["points"][-1]
    assert loss_of(FRONT, point["cross_validated"], before) == pytest.approx(point["loss"])
    front = {**FRONT, "loss": {"terms": ["R1_vs_ts", "unsafe_top1"], "unit": "pt"}}
    worse = copy.deepcopy(before)
    worse["figures"]["unsafe_top1"] = interval(0.65, 480)  # lower is better
    assert loss_of(front, worse, before) == pytest.approx(3)
    assert loss_of(front, before, before) == 0
    assert str(loss_of(front, before, before)) == "0.0"


def test_what_was_not_measured_has_no_objective_and_no_loss():
    front = {
        **FRONT,
        "objective": {**FRONT["objective"], "text": "GS@nobody"},
        "loss": {"terms": ["R1_ts_vs"], "unit": "%"},
    }
    before = FRONT["baseline"]["cross_validated"]
    assert objective_of(front, before) is None
    assert loss_of(front, {**before, "figures": {}}, before) is None
    assert objective_of(FRONT, before) == pytest.approx(29.5)


def test_settings_that_all_trials_of_a_method_share_are_not_told():
    point = FRONT["points"][-1]
    words = settings_words(FRONT, point["method"], point["settings"])
    share, strength = point["settings"]["share"], point["settings"]["strength"]
    assert words == f"share={share:.3g} strength={strength:.3g}"
    assert settings_words({"tried": []}, "uwm", {"layers": ["a", 1.0], "rank": 8}) == "layers=a,1 rank=8"
