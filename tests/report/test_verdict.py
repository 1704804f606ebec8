"""The lines above everything else: what they rest on, and when another method is called better."""

from __future__ import annotations

import pytest

from uwm.figures import PAIRED
from uwm.report import verdict_lines

BEFORE = "before"
SAME, LOWER = ({"difference": (0.0, 0.0, 0.0), "gained": g, "lost": v} for g, v in ((0, 0), (2, 32)))


def column(top1_safe, top1, share=0.5, unsafe=0.9, others=None):
    known = {"emoji": {"top1": top1, "top1_safe": top1_safe, "top1_unsafe": 0.1}} | (others or {})
    figures = dict.fromkeys(PAIRED, (share, share - 0.1, share + 0.1))
    figures |= dict.fromkeys(("unsafe_top1_tu", "unsafe_top1_vu"), (unsafe, unsafe, unsafe))
    return {"pairs": 100, "figures": figures, "zero_shot": known}


def manifest(columns, against=None):
    """A manifest in which no query changed but as `against` says of the edit and the methods beside it."""
    same = dict.fromkeys(PAIRED, SAME)
    differences = {name: {BEFORE: same} for name in columns if name != BEFORE}
    if "after" in differences:
        differences["after"] |= {name: same for name in columns if name not in (BEFORE, "after")} | (against or {})
    return {"results": {"test": columns}, "differences": {"test": differences}}


def lines(*arguments):
    return {line.label: line.text for line in verdict_lines(manifest(*arguments))}


@pytest.mark.parametrize(("top1_safe", "better"), [(0.6, True), (0.5, False)])
def test_a_better_method_keeps_the_accuracy_of_safe_classes(top1_safe, better):
    """Accuracy over all classes falls either way: that unsafe ones are not recognised is no loss."""
    columns = dict.fromkeys((BEFORE, "after", "random"), column(0.55, 0.7)) | {"repel": column(top1_safe, 0.4)}
    found = lines(columns, {"repel": dict.fromkeys(PAIRED, SAME) | {"PU": LOWER}})
    assert ("BETTER" in found) is better
    if better:
        told = "--method repel: GS 50.0 instead of 50.0 %, PU 50.0 instead of 50.0 %"
        assert found["BETTER"] == told


def test_the_lines_say_what_remains_and_the_worst_cost_and_what_a_random_edit_does():
    lost = {"pets": {"top1": 0.4}}
    columns = {
        BEFORE: column(0.6, 0.7, 0.5, 0.9, {"pets": {"top1": 0.8}}),
        "after": column(0.58, 0.6, 0.4, 0.8, lost),
        "random": column(0.6, 0.7, 0.45, 0.85, {"pets": {"top1": 0.75}}),
    }
    assert lines(columns) == {
        "VERDICT": "No certain gain in safety; no certain loss of accuracy. (test, 100 pairs)",
        "SAFETY": "GS 50.0 → 40.0 % (random 45.0), P_tu 50.0 → 40.0 (45.0), P_vu 50.0 → 40.0 (45.0)",
        "REMAINS": "90.0 → 80.0 % of unsafe queries find an unsafe item first (random 85.0)",
        "COST": "zero-shot on pets −40.0 points (random −5.0): 80.0 → 40.0 %; "
        "R@1 Ts→Vs −10.0 points (random −5.0): 50.0 → 40.0 %",
    }


def test_one_model_alone_is_shown_as_it_is():
    assert lines({"model": column(0.6, 0.7)}) == {
        "VERDICT": "One model was measured, and nothing to compare it with. (test, 100 pairs)",
        "SAFETY": "GS 50.0 %, P_tu 50.0, P_vu 50.0",
        "REMAINS": "90.0 % of unsafe queries find an unsafe item first",
        "COST": "zero-shot on emoji 60.0 %; R@1 Ts→Vs 50.0 %",
    }


def test_what_was_not_measured_is_said():
    bare = {BEFORE: column(0, 0) | {"zero_shot": {}}, "after": column(0, 0) | {"zero_shot": {}}}
    assert lines(bare)["COST"] == "R@1 Ts→Vs 0.0 points: 50.0 → 50.0 %; zero-shot not measured: --zero-shot"
    (line,) = verdict_lines({"results": {}})
    assert (line.label, line.text) == ("VERDICT", "Nothing was measured, so gains and costs are not known.")
