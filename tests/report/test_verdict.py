"""The lines above everything else: a method is called better only where it costs no zero-shot accuracy that counts."""

from __future__ import annotations

import pytest

from uwm.figures import PAIRED
from uwm.report import verdict_lines

BEFORE = "before"
SAME, LOWER = ({"difference": (0.0, 0.0, 0.0), "gained": g, "lost": v} for g, v in ((0, 0), (2, 32)))


def column(top1_safe, top1):
    known = {"emoji": {"top1": top1, "top1_safe": top1_safe, "top1_unsafe": 0.1}}
    return {"pairs": 100, "figures": dict.fromkeys(PAIRED, (0.5, 0.4, 0.6)), "zero_shot": known}


@pytest.mark.parametrize(("top1_safe", "better"), [(0.6, True), (0.5, False)])
def test_a_better_method_keeps_the_accuracy_of_safe_classes(top1_safe, better):
    """Accuracy over all classes falls either way: that unsafe ones are not recognised is no loss."""
    columns = dict.fromkeys((BEFORE, "after", "random"), column(0.55, 0.7)) | {"repel": column(top1_safe, 0.4)}
    same = dict.fromkeys(PAIRED, SAME)
    differences = {name: {BEFORE: same} for name in columns if name != BEFORE}
    differences["after"] |= {"random": same, "repel": same | {"PU": LOWER}}
    layer = {"words": "negated", "entries": 1, "of": 2}
    lines = verdict_lines(
        {"results": {"test": columns}, "differences": {"test": differences}, "layers": {"vision.0.fc2": layer}}
    )
    assert any(line.startswith("Better on these pairs: --method repel") for line in lines) is better
