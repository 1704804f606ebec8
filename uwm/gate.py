"""Verdicts on requirements in the formats that CI reads."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import RequirementNotMet
from .escaping import github, xml
from .expressions import Verdict

MARK = "uwm eval"  # by this name of its suites a JUnit file is known as ours, which may be replaced
MARKED = re.compile(rb'<\?xml[^>]*>\s*<testsuites name="uwm eval"')


def is_junit(path: Path) -> bool:
    """Whether a file is a JUnit file that uwm wrote."""
    with path.open("rb") as file:
        return MARKED.match(file.read(256)) is not None


def headline(verdicts: Sequence[Verdict]) -> str:
    """``FAIL: 1 of 3 requirements not met`` or ``PASS: 3 of 3 requirements met``; empty where nothing is required."""
    if not verdicts:
        return ""
    failed = sum(not verdict.met for verdict in verdicts)
    if failed:
        return f"FAIL: {failed} of {len(verdicts)} requirements not met"
    return f"PASS: {len(verdicts)} of {len(verdicts)} requirements met"


def failed_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those that are not met, then the others, in their order."""
    return sorted(verdicts, key=lambda verdict: verdict.met)


def junit(verdicts: Sequence[Verdict], suite: str) -> bytes:
    """A JUnit XML file: one test case a requirement, those that are not met first.

    Args:
        verdicts: Of all requirements.
        suite: What the test suite is called.
    """
    failed = sum(not verdict.met for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failed), "errors": "0"}
    root = ET.Element("testsuites", {"name": MARK, **counts})
    cases = ET.SubElement(root, "testsuite", {"name": xml(suite), **counts})
    if verdicts:
        ET.SubElement(ET.SubElement(cases, "properties"), "property", {"name": "gate", "value": headline(verdicts)})
    for verdict in failed_first(verdicts):
        case = ET.SubElement(cases, "testcase", {"classname": "uwm.eval", "name": xml(verdict.requirement)})
        if verdict.met:
            ET.SubElement(case, "system-out").text = xml(str(verdict))
        else:
            ET.SubElement(case, "failure", {"type": "RequirementNotMet", "message": xml(str(verdict))})
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def github_annotations(verdicts: Sequence[Verdict]) -> list[str]:
    """Workflow commands of GitHub Actions, escaped as in its toolkit: the outcome, and what is not met."""
    failed = [verdict for verdict in verdicts if not verdict.met]
    lines = [headline(verdicts), *(f"{verdict.requirement} not met: {verdict}" for verdict in failed)]
    return [f"::{'error' if failed else 'notice'} title=uwm eval::{github(line)}" for line in lines if line]


def demand(verdicts: Iterable[Verdict]) -> None:
    """Raises RequirementNotMet, naming all that are not met."""
    if failed := [f"{verdict.requirement} ({verdict})" for verdict in verdicts if not verdict.met]:
        raise RequirementNotMet(f"requirement not met: {', '.join(failed)}")
