"""Verdicts on requirements in the formats that CI reads."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from .checkpoint.folder import write_file
from .errors import BadInput, RequirementNotMet
from .expressions import Verdict


def junit(verdicts: Sequence[Verdict], suite: str) -> bytes:
    """A JUnit XML file: one test case a requirement.

    Args:
        verdicts: Of all requirements.
        suite: What the test suite is called.
    """
    failed = sum(not verdict.met for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failed), "errors": "0"}
    root = ET.Element("testsuites", counts)
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


def check_report_files(files: Iterable[Path | None], inputs: Iterable[str | Path]) -> None:
    """Refuse to write a report over or into an input. Raises BadInput."""
    sources = [Path(source).resolve() for source in inputs if Path(source).exists()]
    for file in files:
        if file is None:
            continue
        for source in sources:
            if source in (file.resolve(), *file.resolve().parents):
                raise BadInput(f"{file}: is an input or lies in one ({source.name}); choose another file")
        if file.is_dir():
            raise BadInput(f"{file}: is a folder; choose a file")


def write_reports(
    verdicts: Sequence[Verdict], title: str, summary: str, junit_file: Path | None, markdown_file: Path | None
) -> None:
    """Write JUnit XML; append the summary to the Markdown file, which may have content of earlier CI steps."""
    if junit_file is not None:
        write_file(junit_file, junit(verdicts, title))
    if markdown_file is not None:
        with markdown_file.open("a", encoding="utf-8") as stream:
            stream.write(summary)


def demand(verdicts: Iterable[Verdict]) -> None:
    """Raises RequirementNotMet, naming all that are not met."""
    if failed := [f"{verdict.requirement} ({verdict})" for verdict in verdicts if not verdict.met]:
        raise RequirementNotMet(f"requirement not met: {', '.join(failed)}")
