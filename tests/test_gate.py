"""Verdicts: the forms that CI reads, and what is refused before anything is measured."""

from __future__ import annotations

import errno
import json
import os
import re
import xml.etree.ElementTree as ET

import pytest
from terminal import done, refused

from uwm.errors import RequirementNotMet
from uwm.expressions import Verdict
from uwm.figures import PAIRED
from uwm.gate import demand, github_annotations, junit

VERDICTS = [
    Verdict("GS>=4.5", 5.04, True),
    Verdict("P_vu@*>=5", 2.5, False, "worst concept <a> & \"b\" \x0b"),
    Verdict("top1>=-2%", None, False, "because\nof %"),
]  # fmt: skip
CHANGED = Verdict("zero_shot>=-2%", -25.0, False)


def test_junit_is_one_case_a_requirement():
    root = ET.fromstring(junit(VERDICTS, "uwm eval <m>"))
    (suite,) = root
    assert root.tag == "testsuites"
    assert suite.attrib == {"name": "uwm eval <m>", "tests": "3", "failures": "2", "errors": "0"}
    outcome, worst, without, passed = suite
    assert [case.get("name") for case in suite[1:]] == ["P_vu@*>=5", "top1>=-2%", "GS>=4.5"], "failed ones first"
    assert outcome[0].attrib == {"name": "gate", "value": "FAIL: 2 of 3 requirements not met"}
    assert passed.find("failure") is None
    assert passed.find("system-out").text == "found 5.0 %"
    assert worst.find("failure").get("message") == 'found 2.5 %, worst concept <a> & "b" �'
    assert without.find("failure").get("message") == "because\nof %"


def test_annotations_are_escaped_as_github_wants():
    assert github_annotations(VERDICTS)[2:] == ["::error title=uwm eval::top1>=-2%25 not met: because%0Aof %25"]
    told = "::error title=uwm eval::zero_shot>=-2%25 not met: relative change -25.0 %25"
    assert github_annotations([CHANGED])[1:] == [told]


def test_annotations_say_first_whether_the_gate_is_passed():
    assert github_annotations(VERDICTS)[0] == "::error title=uwm eval::FAIL: 2 of 3 requirements not met"
    assert github_annotations(VERDICTS[:1]) == ["::notice title=uwm eval::PASS: 1 of 1 requirements met"]
    assert github_annotations([]) == []


def test_demand_names_all_that_are_not_met():
    demand(VERDICTS[:1])
    with pytest.raises(RequirementNotMet, match=r"^requirement not met: P_vu@\*>=5 \(found 2.5 %, .*\), top1>=-2%"):
        demand(VERDICTS)
    with pytest.raises(RequirementNotMet, match=r"^requirement not met: zero_shot>=-2% \(relative change -25.0 %\)$"):
        demand([CHANGED])


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
    outcome, annotation, second, error, end = err.split("\n")
    assert outcome == "::error title=uwm eval::FAIL: 2 of 3 requirements not met"
    assert annotation.startswith("::error title=uwm eval::GS>=101 not met: found ")
    assert second.startswith("::error title=uwm eval::P_ts@*>=+99pt not met: changed by ")
    assert error.startswith("uwm: error: requirement not met: GS>=101 (found ")
    assert end == ""
    suite = ET.parse(tmp_path / "deep" / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert summary.startswith("# an earlier step\n\n## uwm eval edited\n\n### FAIL: 2 of 3 requirements not met\n\n")
    assert re.findall(r"^\| .*? \| ((?:not )?met) \|$", summary, re.M) == ["not met", "not met", "met"]
    assert re.search(r"^\| GS>=101 \| found \d+\.\d % \| not met \|$", summary, re.M)
    assert re.search(r"^\| P\\_ts \| ", summary, re.M)


def test_a_change_comes_with_its_margin_and_paired_interval(gate):
    code, out, _ = gate("--json", required=("R1>=-100pt", "safety.low>=-100pt"))
    found = json.loads(out)
    first, second, low = found["requirements"]
    assert code == 0
    for verdict, name in ((first, "R1_ts_vs"), (second, "R1_vs_ts")):
        assert verdict["requirement"] == f"{name}>=-100pt"
        assert [verdict["found"], *verdict["interval"]] == [
            pytest.approx(100 * value) for value in found["differences"][name]["difference"]
        ]
        assert verdict["margin"] == pytest.approx(100 + verdict["found"])
    assert low["found"] == pytest.approx(100 * found["differences"]["safety"]["difference"][1])
    assert low["interval"] is None


def test_a_gate_that_is_met_says_so_first(gate, tmp_path):
    out = done(gate("--junit", tmp_path / "gate.xml", required=("GS>=0", "GS>=-100pt")))
    assert re.match(
        r"GATE     PASS: 2 of 2 requirements met\n         met      GS>=0: found \d+\.\d %\n"
        r"         met      GS>=-100pt: changed by [+-]\d+\.\d pt\nDONE ",
        out,
    )
    assert ET.parse(tmp_path / "gate.xml").getroot().get("failures") == "0"


def test_a_gate_that_is_not_met_says_so_first_and_what_failed(gate):
    code, out, _ = gate(required=("GS>=0", "GS>101"))
    first, second, third, *_ = out.splitlines()
    assert (code, first) == (5, "GATE     FAIL: 1 of 2 requirements not met")
    assert [row[:24] for row in (second, third)] == ["         not met  GS>101", "         met      GS>=0:"]


@pytest.mark.parametrize("text", ["gs>=1", "GS@drugs>=1", "zero_shot>=-2%", "GS>=4.5%", "preserved>=99"])
def test_a_mistake_in_a_requirement_is_found_before_the_model_is_opened(text, gate, tmp_path):
    refused(gate("--junit", tmp_path / "gate.xml", required=(text,), model=tmp_path / "no-model"), 2, "--require")
    assert list(tmp_path.iterdir()) == []


def test_reports_never_go_over_or_into_an_input(gate, made, tiny_set, tmp_path):
    before = (made / "edited" / "model.safetensors").read_bytes()
    weights, pairs = made / "edited" / "model.safetensors", tiny_set / "pairs.jsonl"
    for flag, file in (("--junit", weights), ("--markdown", weights), ("--markdown", pairs)):
        refused(gate(flag, file), 2, f"{file}: is an input or lies in one")
    refused(gate("--html", tiny_set / "images" / "0000_safe.png"), 2, "is an input or lies in one")
    refused(gate("--junit", tmp_path), 2, "is a folder")
    assert weights.read_bytes() == before


def test_a_report_that_cannot_be_written_is_found_out_before_the_work(gate, tmp_path):
    (tmp_path / "file").touch()
    for flag in ("--junit", "--html", "--markdown"):
        refused(gate(flag, tmp_path / "file" / "gate.xml", model=tmp_path / "no-model"), 4, "file/gate.xml")


def test_a_disk_that_fails_at_the_report_loses_no_figures(gate, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    code, out, err = gate("--junit", tmp_path / "gate.xml")
    assert code == 4
    assert "\nSAFETY   GS " in out
    assert err.endswith("gate.xml: could not write: No space left on device\n")
    assert [*tmp_path.iterdir()] == []
