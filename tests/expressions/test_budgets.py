"""Budgets of loss: what they are short for, and what is refused."""

from __future__ import annotations

import re

import pytest
from drawn_expressions import NUMBERS, expressions, require, texts
from hypothesis import given
from hypothesis import strategies as st

from uwm.errors import BadInput
from uwm.evaluation import EvalResult
from uwm.expressions import parse_max_loss, parse_requirements

SETS = ("emoji", "pets")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("2%", "zero_shot:*>=-2% R1_ts_vs>=-2% R1_vs_ts>=-2% preserved>=-2%"),
        (" 1.5 pt ", "zero_shot:*>=-1.5pt R1_ts_vs>=-1.5pt R1_vs_ts>=-1.5pt preserved>=-1.5pt"),
        ("0.0pt", "zero_shot:*>=+0.0pt R1_ts_vs>=+0.0pt R1_vs_ts>=+0.0pt preserved>=+0.0pt"),
        ("zero_shot=1pt", "zero_shot>=-1pt"),
        ("R1 = 2 %", "R1_ts_vs>=-2% R1_vs_ts>=-2%"),
        ("unsafe_top1_tu=1pt", "unsafe_top1_tu<=+1pt"),
        ("P_vu@*=0%", "P_vu@*>=+0%"),
        ("R1_ts_vs.low>=-2pt", "R1_ts_vs.low>=-2pt"),
        ("R1.low=2pt", "R1_ts_vs.low>=-2pt R1_vs_ts.low>=-2pt"),
        ("2pt,R1.low>-2pt", "zero_shot:*>=-2pt preserved>=-2pt R1_ts_vs.low>-2pt R1_vs_ts.low>-2pt"),
        ("GS@a, b=2pt,top1=1%", "GS@a, b>=-2pt top1>=-1%"),
        ("2%,zero_shot=1pt", "R1_ts_vs>=-2% R1_vs_ts>=-2% preserved>=-2% zero_shot>=-1pt"),
        ("R1=1pt , 2%", "zero_shot:*>=-2% preserved>=-2% R1_ts_vs>=-1pt R1_vs_ts>=-1pt"),
        ("2%,R1_vs_ts.low>=-4pt", "zero_shot:*>=-2% R1_ts_vs>=-2% preserved>=-2% R1_vs_ts.low>=-4pt"),
        ("2%,preserved=0pt", "zero_shot:*>=-2% R1_ts_vs>=-2% R1_vs_ts>=-2% preserved>=+0pt"),
        ("2%,zero_shot:pets=5%,R1=2%,preserved=2%",
         "zero_shot:emoji>=-2% zero_shot:pets>=-5% R1_ts_vs>=-2% R1_vs_ts>=-2% preserved>=-2%"),
        ("2%,R1@war=9%,R1_safe=1%", "zero_shot:*>=-2% R1_ts_vs>=-2% R1_vs_ts>=-2% preserved>=-2% "
         "R1_ts_vs@war>=-9% R1_vs_ts@war>=-9% R1_safe>=-1%"),
        ("R1=1%,R1_ts_vs>=-1%", "R1_ts_vs>=-1% R1_vs_ts>=-1%"),
    ],
)  # fmt: skip
def test_a_budget_is_short_for_requirements(text, expanded):
    found = parse_max_loss(text, SETS, preserve=True)
    assert " ".join(texts(found)) == expanded
    assert found == tuple(require(text) for text in texts(found))


def test_a_loss_is_about_what_is_measured():
    assert texts(parse_max_loss("2%")) == ["R1_ts_vs>=-2%", "R1_vs_ts>=-2%"]
    assert texts(parse_max_loss("2%", ["pets"])) == ["zero_shot:*>=-2%", "R1_ts_vs>=-2%", "R1_vs_ts>=-2%"]
    assert texts(parse_max_loss("2%", preserve=True)) == ["R1_ts_vs>=-2%", "R1_vs_ts>=-2%", "preserved>=-2%"]


def test_a_budget_of_what_is_preserved_is_checked_like_any_other_figure():
    kept = [EvalResult(4, {"preserved": (share, share, share)}, {}) for share in (0.97, 1.0)]
    (budget,) = parse_max_loss("preserved=2%", preserve=True)
    verdict = budget.check(*kept, {"preserved": {"difference": (-0.03, -0.05, -0.01)}})
    assert (verdict.met, verdict.interval) == (False, pytest.approx((-5, -1)))
    assert (verdict.found, verdict.margin) == pytest.approx((-3, -1))


GENERAL = "expected LOSS, FIGURE=LOSS or a change, with commas between, such as 2%, R1=1pt or R1_ts_vs.low>=-2pt"


@pytest.mark.parametrize(
    ("text", "term", "words"),
    [
        ("", "", GENERAL),
        ("2%,", "", GENERAL),
        ("GS", "GS", GENERAL),
        ("2%,GS=>4", "GS=>4", GENERAL),
        ("R1==2%", "R1==2%", GENERAL),
        ("2", "2", "write 2% of the baseline's value, or 2pt for points"),
        ("-2", "-2", "write 2% of the baseline's value, or 2pt for points"),
        ("-2%", "-2%", "write 2% for a loss of so much, without a sign"),
        ("1%,R1=+2pt", "R1=+2pt", "write 2pt for a loss of so much, without a sign"),
        ("R1=2,GS=1%", "R1=2,GS=1%", GENERAL),
        ("R1=2", "R1=2", "write 2% of the baseline's value, or 2pt for points"),
        ("R1=", "R1=", "expected a loss after the =, such as 2% or 1.5pt"),
        ("R1=little", "R1=little", "expected a loss after the =, such as 2% or 1.5pt"),
        ("GS>=4", "GS>=4", "expected a change, such as GS>=-2pt; --require is for values"),
        ("GS>=4%", "GS>=4%", "write 4 for percent, +4% for a change of so much"),
        ("2%, 1 pt", "2%, 1 pt", "expected one loss for every figure, found 2% and 1 pt"),
        ("GS.low=2%", "GS.low=2%", "there is no such .low"),
        ("top1@war=2%", "top1@war=2%", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET of --zero-shot"),
    ],
)
def test_what_is_no_budget_is_refused(text, term, words):
    with pytest.raises(BadInput, match=f"^{re.escape(f'--max-loss {term!r}: {words}')}") as refusal:
        parse_max_loss(text)
    assert refusal.value.exit_code == 2


@given(st.lists(st.tuples(expressions(("",)), NUMBERS, st.sampled_from(["%", "pt"])), min_size=1, max_size=4))
def test_a_budget_says_what_the_requirements_say(terms):
    budget = parse_max_loss(",".join(f"{expression}={number}{unit}" for expression, number, unit in terms))
    expected = []
    for expression, number, unit in terms:
        lower = expression.startswith("unsafe_top1")
        change = f"{'<=+' if lower else '>=-' if float(number) else '>=+'}{number}{unit}"
        expected += parse_requirements(expression + change, True)
    assert budget == tuple(dict.fromkeys(expected))
