"""Verdicts on requirements in the formats that CI reads."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import RequirementNotMet
from .expressions import Verdict

MARK = "uwm eval"  # by this name of its suites a JUnit file is known as ours, which may be replaced
MARKED = re.compile(rb'<\?xml[^>]*>\s*<testsuites name="uwm eval"')


def is_junit(path: Path) -> bool:
    """Whether a file is a JUnit file that uwm wrote."""
    with path.open("rb") as file:
        return MARKED.match(file.read(256)) is not None


def junit(verdicts: Sequence[Verdict], suite: str) -> bytes:
    """A JUnit XML file: one test case a requirement.

    Args:
        verdicts: Of all requirements.
        suite: What the test suite is called.
    """
    failed = sum(not verdict.met for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failed), "errors": "0"}
    root = ET.Element("testsuites", {"name": MARK, **counts})
    cases = ET.SubElement(root, "testsuite", {"name": _legal(suite), **counts})
    for verdict in verdicts:
        case = ET.SubElement(cases, "testcase", {"classname": "uwm.eval", "name": _legal(verdict.requirement)})
        if verdict.met:
            ET.SubElement(case, "system-out").text = _legal(str(verdict))
        else:
            ET.SubElement(case, "failure", {"type": "RequirementNotMet", "message": _legal(str(verdict))})
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _legal(text: str) -> str:
    """Replace the characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def github_annotations(verdicts: Iterable[Verdict]) -> list[str]:
    """A workflow command of GitHub Actions for every requirement that is not met, escaped as in its toolkit."""
    return [
        f"::error title=uwm eval::{_escaped(f'{verdict.requirement} not met: {verdict}')}"
        for verdict in verdicts
        if not verdict.met
    ]


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def demand(verdicts: Iterable[Verdict]) -> None:
    """Raises RequirementNotMet, naming all that are not met."""
    if failed := [f"{verdict.requirement} ({verdict})" for verdict in verdicts if not verdict.met]:
        raise RequirementNotMet(f"requirement not met: {', '.join(failed)}")
