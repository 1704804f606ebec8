"""Requirements: what they mean, what is refused before anything is measured, and the forms that CI reads."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from terminal import done, refused

from uwm.errors import BadInput, RequirementNotMet
from uwm.evaluation import EvalResult, differences
from uwm.figures import PAIRED
from uwm.gate import Verdict, check_known, demand, github_annotations, junit, parse_requirement


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
        ("top1:food>=+12.5%", 12.5, True),
        ("top5>=90", 90, True),
        ("unsafe_top1_tu<=44", 44, True),
    ],
)
def test_what_a_requirement_means(text, found, met):
    verdict = parse_requirement(text, True).check(AFTER, BEFORE)
    assert verdict.requirement == text
    assert verdict.found == pytest.approx(found)
    assert verdict.met is met


def test_the_bound_of_a_change_is_that_of_the_paired_interval():
    low = parse_requirement("GS.low>=+0.5pt", True).check(AFTER, BEFORE)
    high = parse_requirement("GS.high>=+0.5pt", True).check(AFTER, BEFORE)
    assert 0 < low.found < 4 < high.found < 9
    change = 100 * differences(AFTER, BEFORE, seed=3)["GS"]["difference"][1]
    assert parse_requirement("GS.low>=+0pt", True).check(AFTER, BEFORE, seed=3).found == change
    assert (str(low), str(high)) == (f"found {low.found:.1f} pt", f"found {high.found:.1f} pt")


def test_every_concept_names_the_worst():
    assert parse_requirement("GS@*>=11", False).check(AFTER).note == "worst concept war"
    assert parse_requirement("GS@*<=49", False).check(AFTER).note == "worst concept a b"


def test_what_cannot_be_compared_is_not_met_and_says_why():
    verdict = parse_requirement("GS>=-2%", True).check(AFTER, result(0))
    assert (verdict.found, verdict.met) == (None, False)
    assert str(verdict) == "the baseline's GS is 0, so no change in % exists; use pt"
    verdict = parse_requirement("top1_unsafe<=30", False).check(AFTER)
    assert (verdict.met, str(verdict)) == (False, "no data set has a top1_unsafe")
    assert str(parse_requirement("top5:pets>=3", False).check(AFTER)) == "no data set pets has a top5"
    assert str(parse_requirement("GS@drugs>=3", False).check(AFTER)) == "there is no GS of drugs"
    assert str(parse_requirement("gs<=3", False).check(AFTER)) == "there is no gs"
    assert str(parse_requirement("GS@*>=3", False).check(result(1))) == "the pairs name no concepts"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GS", "expected FIGURE>=NUMBER"),
        ("GS>=", "expected FIGURE>=NUMBER"),
        ("GS=>4", "such as GS>=4.5"),
        ("GS>=nan", "expected FIGURE>=NUMBER"),
        ("GS.middle>=4", "expected FIGURE>=NUMBER"),
        ("GS@>=4", "expected FIGURE>=NUMBER"),
        ("GS@a\nb>=4", "expected FIGURE>=NUMBER"),
        ("GS>=4.5%", "write 4.5 for percent, +4.5% for a change of so much"),
        ("GS>=2pt", "write 2 for percent, +2pt for a change of so much"),
        ("GS.low>=-2%", "there is no such .low"),
        ("GS.low@war>=-2pt", "there is no such .low"),
        ("top1.high<=4", "there is no such .high"),
        ("top1@war>=4", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET"),
        ("GS:pets>=4", "expected FIGURE@CONCEPT of the pairs, or top1:DATASET"),
    ],
)
def test_what_has_no_meaning_is_refused(text, words):
    with pytest.raises(BadInput) as refusal:
        parse_requirement(text, True)
    assert str(refusal.value).startswith(f"--require {text!r}: ")
    assert words in str(refusal.value)


@pytest.mark.parametrize("text", ["GS>=-2%", "GS>=+1pt", "GS>=0%"])
def test_a_change_needs_a_baseline(text):
    with pytest.raises(BadInput, match="needs --baseline MODEL"):
        parse_requirement(text, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gs>=1", "no figure 'gs'; there are P_ts, P_tu, .*GS, R1_ts_vs, .*unsafe_top1_vu, top1"),
        ("GS@drugs>=1", "no concept 'drugs'; there are a b, war, \\*$"),
        ("top1:cars>=1", "no data set 'cars'; there are food, pets$"),
    ],
)
def test_what_there_will_not_be_is_refused(text, words):
    check_known([parse_requirement(t, True) for t in ("GS>=1", "GS@*>=1", "GS@war>=1", "top1:pets>=1")],
                ["a b", "war"], ["food", "pets"])  # fmt: skip
    with pytest.raises(BadInput, match=words):
        check_known([parse_requirement(text, True)], ["a b", "war"], ["food", "pets"])


def test_concepts_and_data_sets_of_a_set_without_any():
    for text, words in (
        ("GS@*>=1", "no concept '\\*'; there are none"),
        ("zero_shot>=1", "no figure 'top1'; zero-shot figures need --zero-shot; there are P_ts"),
    ):
        with pytest.raises(BadInput, match=words):
            check_known([parse_requirement(text, True)], [], [])


# ---------------------------------------------------------------- the forms that CI reads

VERDICTS = [
    Verdict("GS>=4.5", 5.04, True),
    Verdict("P_vu@*>=5", 2.5, False, "worst concept <a> & \"b\" \x0b"),
    Verdict("top1>=-2%", None, False, "because\nof %"),
]  # fmt: skip


def test_junit_is_one_case_a_requirement():
    root = ET.fromstring(junit(VERDICTS, "uwm eval <m>"))
    (suite,) = root
    assert root.tag == "testsuites"
    assert suite.attrib == {"name": "uwm eval <m>", "tests": "3", "failures": "2", "errors": "0"}
    assert [case.get("name") for case in suite] == [v.requirement for v in VERDICTS]
    passed, worst, without = suite
    assert passed.find("failure") is None
    assert passed.find("system-out").text == "found 5.0 %"
    assert worst.find("failure").get("message") == 'found 2.5 %, worst concept <a> & "b" �'
    assert without.find("failure").get("message") == "because\nof %"


def test_annotations_are_escaped_as_github_wants():
    assert github_annotations(VERDICTS)[1:] == ["::error title=uwm eval::top1>=-2%25 not met: because%0Aof %25"]
    assert github_annotations(VERDICTS[:1]) == []


def test_demand_names_all_that_are_not_met():
    demand(VERDICTS[:1])
    with pytest.raises(RequirementNotMet, match=r"^requirement not met: P_vu@\*>=5 \(found 2.5 %, .*\), top1>=-2%"):
        demand(VERDICTS)


# ---------------------------------------------------------------- in the terminal


@pytest.fixture
def gate(run_uwm, made, tiny_hf, tiny_set):
    """`uwm eval` of the edited model against the original on the test split, with requirements."""

    def run(*more, required=(), model=made / "edited"):
        flags = [word for text in required for word in ("--require", text)]
        arguments = ("--pairs", tiny_set, "--split", "test", "--baseline", tiny_hf)
        return run_uwm("eval", model, *arguments, *flags, *more)

    return run


def test_a_failed_gate_still_shows_and_writes_everything(gate, tmp_path):
    files = ("--junit", tmp_path / "deep" / "gate.xml", "--markdown", tmp_path / "summary.md")
    (tmp_path / "summary.md").write_text("# an earlier step\n\n")
    code, out, err = gate(*files, "--annotations", "github", "--json", required=("GS>=0", "GS>=101", "P_ts@*>=+99pt"))
    assert code == 5
    found = json.loads(out)
    assert [v["met"] for v in found["requirements"]] == [True, False, False]
    assert found["differences"].keys() == found["model"]["figures"].keys() == set(PAIRED)
    annotation, second, error, end = err.split("\n")
    assert annotation.startswith("::error title=uwm eval::GS>=101 not met: found ")
    assert second.startswith("::error title=uwm eval::P_ts@*>=+99pt not met: found ")
    assert error.startswith("uwm: error: requirement not met: GS>=101 (found ")
    assert end == ""
    suite = ET.parse(tmp_path / "deep" / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert summary.startswith("# an earlier step\n\n## uwm eval edited\n\n### tiny-set (8 pairs")
    assert re.search(r"^\| GS>=101 \| \d+\.\d % \| not met \|$", summary, re.M)
    assert re.search(r"^\| P\\_ts \| ", summary, re.M)


def test_a_gate_that_is_met_is_silent(gate, tmp_path):
    out = done(gate("--junit", tmp_path / "gate.xml", "--annotations", "github", required=("GS>=0", "GS>=-100pt")))
    assert re.search(r"^requirements\n +found\nGS>=0 +\d+\.\d % +met\nGS>=-100pt +-?\d+\.\d pt +met$", out, re.M)
    assert ET.parse(tmp_path / "gate.xml").getroot().get("failures") == "0"


@pytest.mark.parametrize("text", ["gs>=1", "GS@drugs>=1", "zero_shot>=-2%", "GS>=4.5%"])
def test_a_mistake_in_a_requirement_is_found_before_the_model_is_opened(text, gate, tmp_path):
    refused(gate("--junit", tmp_path / "gate.xml", required=(text,), model=tmp_path / "no-model"), 2, "--require")
    assert list(tmp_path.iterdir()) == []


def test_reports_never_go_over_or_into_an_input(gate, made, tiny_set, tmp_path):
    before = (made / "edited" / "model.safetensors").read_bytes()
    weights, pairs = made / "edited" / "model.safetensors", tiny_set / "pairs.jsonl"
    for flag, file in (("--junit", weights), ("--markdown", weights), ("--markdown", pairs)):
        refused(gate(flag, file), 2, f"{file}: is an input or lies in one")
    refused(gate("--junit", tmp_path), 2, "is a folder")
    assert weights.read_bytes() == before


def test_a_report_that_cannot_be_written_comes_after_the_figures(gate, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = gate("--junit", tmp_path / "file" / "gate.xml")
    assert code == 4
    assert "\nGS " in out
    assert err.startswith("uwm: error: ")
