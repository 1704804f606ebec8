"""The language of requirements, budgets and objectives: what each form means, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from drawn_expressions import NUMBERS, SPACES, expressions, require, texts
from hypothesis import given
from hypothesis import strategies as st

from uwm.errors import BadInput
from uwm.evaluation import EvalResult, differences
from uwm.expressions import (
    Expression,
    NothingToCompare,
    Verdict,
    check_known,
    parse_max_loss,
    parse_objective,
    parse_requirements,
)
from uwm.figures import PAIRED

GUIDE = Path(__file__).parents[1] / "examples" / "guides" / "gate-in-ci.md"


def result(passed, zero_shot=None, by_concept=None):
    """100 queries, of which so many pass, for every figure; the interval is ± 2 points."""
    samples = torch.arange(100) < passed
    figures = dict.fromkeys(PAIRED, (passed / 100, passed / 100 - 0.02, passed / 100 + 0.02))
    concepts = {
        concept: dict.fromkeys(PAIRED, (share, share - 0.1, share + 0.1))
        for concept, share in (by_concept or {}).items()
    }
    return EvalResult(100, figures, zero_shot or {}, concepts, samples={name: samples.clone() for name in PAIRED})


BEFORE = result(
    40, {"pets": {"top1": 0.6, "pictures": 9}, "food": {"top1": 0.4, "top5": 0.9}}, {"war": 0.2, "a b": 0.4}
)
AFTER = result(
    44, {"pets": {"top1": 0.5, "pictures": 9}, "food": {"top1": 0.45, "top5": 0.9}}, {"war": 0.1, "a b": 0.5}
)
# Two data sets of ten images; "emoji" names unsafe classes, and its first four images are of safe ones.
SAFE = torch.arange(10) < 4


def of_images(emoji, pets):
    right = {name: torch.tensor([int(c) for c in rows]) for name, rows in (("emoji", emoji), ("pets", pets))}
    scores = {name: {"top1": rows.double().mean().item()} for name, rows in right.items()}
    scores["emoji"]["top1_safe"] = right["emoji"][SAFE].double().mean().item()
    return EvalResult(4, {}, scores, samples={"GS": torch.ones(4)}, right=right, safe={"emoji": SAFE})


IMAGES_BEFORE, IMAGES_AFTER = of_images("1111111111", "1111100000"), of_images("1110000000", "1111000000")
IMAGE_CHANGES = differences(IMAGES_AFTER, IMAGES_BEFORE)


def check(text, changes=None):
    return require(text).check(AFTER, BEFORE, changes)


# ---------------------------------------------------------------- requirements


@pytest.mark.parametrize(
    ("text", "found", "met"),
    [
        ("GS>=44", 44, True),
        ("GS >= 44.1", 44, False),
        ("GS<=44", 44, True),
        ("GS.low>=42", 42, True),
        ("GS.high<=45.9", 46, False),
        ("GS>=+10%", 10, True),
        ("GS<=+9.9%", 10, False),
        ("GS>=0%", 10, True),
        ("GS>=+4pt", 4, True),
        ("GS>=+4.1pt", 4, False),
        ("GS <= -1 pt", 4, False),
        ("GS@war>=10", 10, True),
        ("GS.low@war>=1", 0, False),
        ("GS@a b>=50", 50, True),
        ("GS@*>=10", 10, True),
        ("GS@*<=49", 50, False),
        ("GS@war>=-10pt", -10, True),
        ("GS@*>=-9pt", -10, False),
        ("GS@*>=-50%", -50, True),
        ("zero_shot>=47.5", 47.5, True),
        ("zero_shot>=-5%", -5, True),
        ("zero_shot>=-4.9%", -5, False),
        ("zero_shot:pets>=-10pt", -10, True),
        ("zero_shot:*>=45", 45, True),
        ("zero_shot:*>=-9pt", -10, False),
        ("top1:food>=+12.5%", 12.5, True),
        ("top5>=90", 90, True),
        ("top5:*>=90", 90, True),
        ("unsafe_top1_tu<=44", 44, True),
        ("safety>=+5pt", 4, False),
        ("R1_safe.low>=42", 42, True),
        ("GS>44", 44, False),
        ("GS > 43.9", 44, True),
        ("GS<44", 44, False),
        ("GS<44.1", 44, True),
        ("GS.low>42", 42, False),
        ("GS>+4pt", 4, False),
        ("GS>+3.9pt", 4, True),
        ("GS<+10%", 10, False),
        ("GS@*>10", 10, False),
        ("GS@*<51", 50, True),
        ("zero_shot:*>45", 45, False),
        ("zero_shot>-5%", -5, False),
        ("top1:food<+12.6%", 12.5, True),
    ],
)
def test_what_a_requirement_means(text, found, met):
    verdict = check(text)
    assert verdict.requirement == text
    assert verdict.found == pytest.approx(found)
    assert verdict.met is met
    assert (verdict.margin >= 0) is met


@pytest.mark.parametrize(
    ("text", "margin"), [("GS>=40", 4), ("GS<=40", -4), ("GS>=+10%", 0), ("GS>=+6pt", -2), ("GS@*<=60", 10)]
)
def test_the_margin_is_the_way_from_the_bound_to_the_good_side(text, margin):
    assert check(text).margin == pytest.approx(margin)


@pytest.mark.parametrize("text", ["GS>=+0pt", "GS<=+0pt", "GS>=+0%", "GS<=+0%", "unsafe_top1_vu<=+0pt", "R1>=+0pt"])
def test_a_strict_requirement_is_not_met_by_no_change(text):
    loose, strict = (parse_requirements(t, True)[0].check(BEFORE, BEFORE) for t in (text, text.replace("=", "")))
    assert (loose.met, strict.met) == (True, False)
    assert strict.margin < 0 <= loose.margin


def test_the_interval_of_no_change_is_no_evidence():
    """Resampling queries of which none changed cannot see beyond zero; the exact bound for none of 100 is 3.6 %."""
    same = differences(BEFORE, BEFORE)
    for text, end in (("GS.low>=+0pt", "low end of the change -3.6"), ("GS.high<=+0pt", "high end of the change +3.6")):
        verdict = require(text).check(BEFORE, BEFORE, same)
        assert (verdict.met, str(verdict)) == (False, f"{end} pt, no query changed")
    assert require("zero_shot:pets>=+0pt").check(
        IMAGES_AFTER, IMAGES_AFTER, differences(IMAGES_AFTER, IMAGES_AFTER)
    ).interval == pytest.approx((-30.8, 30.8), abs=0.1)


def test_a_bound_that_is_met_but_for_rounding_has_no_negative_margin():
    verdict = Verdict("zero_shot>=-5%", -5.0, True, "", 0.0)
    assert check("zero_shot>=-5%") == replace(verdict, found=check("zero_shot>=-5%").found)


def test_r1_stands_for_both_directions():
    found = parse_requirements(" R1.low@war >= 60 ", False)
    assert texts(found) == ["R1_ts_vs.low@war >= 60", "R1_vs_ts.low@war >= 60"]
    assert [r.expression.figure for r in found] == ["R1_ts_vs", "R1_vs_ts"]


def test_zero_shot_is_of_the_safe_classes_where_a_data_set_names_unsafe_ones():
    values = {"zero_shot": (75 + 40) / 2, "zero_shot:emoji": 75, "zero_shot:pets": 40, "zero_shot:*": 40}
    values |= {"top1": (30 + 40) / 2, "top1:*": 30, "top1_safe": 75, "top1:emoji": 30}
    assert {text: parse_objective(text).value(IMAGES_AFTER) for text in values} == pytest.approx(values)


def test_the_bound_of_a_change_is_that_of_the_paired_interval():
    after = result(50)
    changes = differences(after, BEFORE, seed=3)
    low, high = (require(f"GS.{bound}>=+0.5pt").check(after, BEFORE, changes) for bound in ("low", "high"))
    assert 0 < low.found < 10 < high.found < 17
    assert (low.found, high.found) == tuple(100 * bound for bound in changes["GS"]["difference"][1:])
    assert (str(low), str(high)) == (
        f"low end of the change +{low.found:.1f} pt",
        f"high end of the change +{high.found:.1f} pt",
    )
    assert low.interval is None


def test_a_change_has_the_paired_interval_in_its_own_unit():
    low, high = differences(AFTER, BEFORE)["GS"]["difference"][1:]
    changes = differences(AFTER, BEFORE)
    assert check("GS>=-2pt", changes).interval == pytest.approx((100 * low, 100 * high))
    assert check("GS>=-2%", changes).interval == pytest.approx((100 * low / 0.4, 100 * high / 0.4))
    for text in ("GS>=4", "GS@war>=-2pt", "GS@*>=-2pt", "zero_shot>=-2pt"):
        assert check(text, changes).interval is None, text
    assert check("GS>=-2pt").interval is None


@pytest.mark.parametrize(
    ("text", "key", "before"),
    [
        ("zero_shot:emoji>=-2pt", "top1_safe:emoji", 1),
        ("zero_shot:pets>=-2%", "top1:pets", 0.5),
        ("zero_shot:*>=-2pt", "top1_safe:emoji", 1),
        ("zero_shot:*<=-2pt", "top1:pets", 0.5),
        ("zero_shot:*>=-19%", "top1_safe:emoji", 1),
        ("top1:emoji>=-2%", "top1:emoji", 1),
        ("top1_safe>=-2%", "top1_safe:emoji", 1),
        ("zero_shot>=-2pt", None, 1),
    ],
)
def test_a_change_on_one_data_set_has_its_paired_interval(text, key, before):
    verdict = require(text).check(IMAGES_AFTER, IMAGES_BEFORE, IMAGE_CHANGES)
    if key is None:
        assert verdict.interval is None
    else:
        mean, low, high = (100 * value / (before if "%" in text else 1) for value in IMAGE_CHANGES[key]["difference"])
        assert (verdict.found, *verdict.interval) == pytest.approx((mean, low, high))


def test_every_concept_and_every_data_set_name_the_worst():
    assert check("GS@*>=11").note == "worst concept war"
    assert check("GS@*<=49").note == "worst concept a b"
    assert check("zero_shot:*>=-2%").note == "worst data set pets"
    assert check("zero_shot>=-2%").note == ""


def test_a_change_does_not_read_as_a_value():
    assert str(check("zero_shot>=-2%")) == "relative change -5.0 %"
    assert str(check("GS>=+1pt")) == "changed by +4.0 pt"
    assert str(check("zero_shot:*>=-2 %")) == "relative change -16.7 %, worst data set pets"
    assert str(check("GS>=4")) == "found 44.0 %"


def test_a_verdict_is_written_with_all_its_parts():
    parts = {"requirement": "GS>=50", "found": 44.0, "met": False, "note": "", "margin": -6.0, "interval": None}
    assert asdict(check("GS>=50")) == pytest.approx(parts)


def test_what_cannot_be_compared_is_not_met_and_says_why():
    verdict = require("GS>=-2%").check(AFTER, result(0))
    assert (verdict.found, verdict.met, verdict.margin, verdict.interval) == (None, False, None, None)
    assert str(verdict) == "the baseline's GS is 0, so no change in % exists; use pt"
    by_concept = result(1, by_concept={"war": 0.0, "a b": 0.1})
    for text, words in (
        ("top1_unsafe<=30", "no data set has a top1_unsafe"),
        ("top1_unsafe:*<=30", "no data set has a top1_unsafe"),
        ("top5:pets>=3", "no data set pets has a top5"),
        ("GS@drugs>=3", "there is no GS of drugs"),
        ("gs<=3", "there is no gs"),
        ("preserved>=3", "there is no preserved"),
        ("GS.low>=+0pt", "there is no paired interval of the change of GS"),
    ):
        verdict = check(text)
        assert (verdict.met, str(verdict)) == (False, words)
    assert str(require("GS@*>=3").check(result(1))) == "the pairs name no concepts"
    assert str(require("GS@*>=-3%").check(AFTER, by_concept)).startswith("the baseline's GS of war is 0")
    assert (
        str(require("GS@*>=-3pt").check(AFTER, result(1, by_concept={"war": 0.1}))) == "the baseline has no GS of a b"
    )
    assert str(require("GS>=-3pt").check(AFTER)) == "there is no baseline to compare with"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GS", "expected FIGURE>=NUMBER"),
        ("GS>=", "expected FIGURE>=NUMBER"),
        ("GS=>4", "such as GS>=4.5"),
        ("GS=2%", "such as GS>=4.5"),
        ("GS>=nan", "expected FIGURE>=NUMBER"),
        ("GS.middle>=4", "expected FIGURE>=NUMBER"),
        ("GS@>=4", "expected FIGURE>=NUMBER"),
        ("GS@a\nb>=4", "expected FIGURE>=NUMBER"),
        ("GS>=4.5%", "write 4.5 for percent, +4.5% for a change of so much"),
        ("GS>=2pt", "write 2 for percent, +2pt for a change of so much"),
        ("GS>=-2", "write -2pt or -2% for a change, 2 for percent"),
        ("R1.low>=+0", "write +0pt or +0% for a change, 0 for percent"),
        ("GS.low>=-2%", "there is no such .low"),
        ("GS.low@war>=-2pt", "there is no such .low"),
        ("top1.high<=4", "there is no such .high"),
        ("zero_shot.low>=4", "there is no such .low"),
        ("top1@war>=4", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET"),
        ("zero_shot@war>=4", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET"),
        ("GS:pets>=4", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET"),
        ("R1:pets>=4", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET"),
    ],
)
def test_what_has_no_meaning_is_refused(text, words):
    with pytest.raises(BadInput) as refusal:
        parse_requirements(text, True)
    assert str(refusal.value).startswith(f"--require {text!r}: ")
    assert words in str(refusal.value)


@pytest.mark.parametrize("text", ["GS>=-2%", "GS>=+1pt", "GS>=0%"])
def test_a_change_needs_a_baseline(text):
    with pytest.raises(BadInput, match="needs --baseline MODEL"):
        parse_requirements(text, False)


# ---------------------------------------------------------------- objectives


def test_an_objective_is_an_expression_and_its_value_in_percent():
    assert parse_objective(" GS.low@a b ") == Expression("GS.low@a b", "GS", "low", "a b", "")
    values = {"safety": 44, "GS.low": 42, "GS@war": 10, "GS@*": 10, "unsafe_top1@*": 50, "zero_shot": 47.5}
    values |= {"zero_shot:*": 45, "top5:food": 90, "GS.high@a b": 60}
    assert {text: parse_objective(text).value(AFTER) for text in values} == pytest.approx(values)
    assert [parse_objective(text).lower_is_better for text in ("unsafe_top1", "safety")] == [True, False]


def test_the_value_of_what_was_not_measured_is_refused():
    with pytest.raises(NothingToCompare, match="^no data set has a zero_shot$"):
        parse_objective("zero_shot").value(result(3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GS>=4", "expected FIGURE without a comparison, such as safety, GS.low or zero_shot:DATASET"),
        ("GS=2%", "expected FIGURE without a comparison"),
        ("", "expected FIGURE without a comparison"),
        ("GS.middle", "expected FIGURE without a comparison"),
        ("zero_shot.low", "there is no such .low"),
        ("GS:pets", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET"),
        ("R1", "R1 stands for R1_ts_vs and R1_vs_ts; write R1_safe for their mean"),
    ],
)
def test_what_is_no_objective_is_refused(text, words):
    with pytest.raises(BadInput, match=f"^{re.escape(f'--objective {text!r}: {words}')}") as refusal:
        parse_objective(text)
    assert refusal.value.exit_code == 2


# ---------------------------------------------------------------- what will be measured


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gs", "no figure 'gs'; there are P_ts, P_tu, .*GS, R1_ts_vs, .*unsafe_top1_vu, .*safety, zero_shot, top1, "),
        ("GS@drugs", "no concept 'drugs'; there are a b, war, \\*$"),
        ("zero_shot:cars", "no data set 'cars'; there are food, pets, \\*$"),
        ("preserved", "only --max-loss with --preserve SET measures preserved$"),
    ],
)
def test_what_there_will_not_be_is_refused(text, words):
    known = [parse_objective(t) for t in ("GS", "GS@*", "GS@war", "top1:pets", "zero_shot:*", "safety")]
    check_known(known, ["a b", "war"], ["food", "pets"], "--objective")
    for asked, flag in ((parse_objective(text), "--objective"), (require(f"{text}>=1"), "--require")):
        with pytest.raises(BadInput, match=f"^{re.escape(f'{flag} {asked.text!r}: ')}{words}"):
            check_known([asked], ["a b", "war"], ["food", "pets"], flag)


def test_concepts_and_data_sets_of_a_set_without_any():
    for text, words in (
        ("GS@*>=1", "no concept '\\*'; there are none"),
        ("zero_shot>=1", "zero_shot is measured with --zero-shot DATASET only; give one"),
    ):
        with pytest.raises(BadInput, match=words):
            check_known([require(text)], [], [], "--require")


def test_what_is_preserved_is_known_to_a_search_that_measures_it():
    check_known(parse_max_loss("2%", ["pets"], preserve=True), [], ["pets"], "--max-loss", preserve=True)
    with pytest.raises(BadInput, match="no concept 'war'; there are none"):
        check_known(parse_max_loss("preserved@war=2%"), ["war"], [], "--max-loss", preserve=True)


# ---------------------------------------------------------------- all of it


@given(st.data())
def test_a_requirement_is_read_again_from_its_text(data):
    unit = data.draw(st.sampled_from(["", "%", "pt"]))
    value = data.draw(st.sampled_from(["+", "-"] if unit else [""])) + data.draw(NUMBERS)
    expression = data.draw(expressions(("",) if unit else ("", ".low", ".high")))
    parts = [expression, data.draw(st.sampled_from([">=", "<=", ">", "<"])), value, unit, ""]
    found = parse_requirements("".join(data.draw(SPACES) + part for part in parts), True)
    assert len(found) == (2 if re.match(r"R1\b", expression) else 1)
    for requirement in found:
        assert parse_requirements(requirement.text, True) == (requirement,)
        assert parse_objective(requirement.expression.text) == requirement.expression


def test_every_form_that_the_guide_shows_is_read():
    """The first cell of each row of its four tables."""
    section = GUIDE.read_text("utf-8").split("## The language")[1].split("\n## ")[0]
    tables = {re.findall(r"[\w-]+", table)[0]: table for table in re.findall(r"(?:^\|.*\n)+", section, re.M)}
    forms = {name: [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
             for name, table in tables.items()}  # fmt: skip
    assert {name: len(rows) for name, rows in forms.items()} == {
        "expression": 6, "--require": 5, "--max-loss": 6, "--objective": 1
    }  # fmt: skip
    known = {"concepts": ["weapons"], "data_sets": ["cifar10"]}
    for name, rows in forms.items():
        for text in (text for row in rows for text in row):
            if name == "--max-loss":
                check_known(parse_max_loss(text, ["cifar10"], True), **known, flag=name, preserve=True)
            elif name == "--require":
                check_known(parse_requirements(text, True), **known, flag=name)
            else:
                check_known([parse_objective(text)], **known, flag="--objective")


def test_the_language_needs_no_torch():
    code = "import sys, uwm.expressions; print({'torch', 'numpy', 'uwm.evaluation'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
