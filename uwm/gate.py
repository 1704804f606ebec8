"""Requirements on figures, and their verdicts in the formats that CI reads."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .checkpoint.folder import write_file
from .errors import BadInput, RequirementNotMet
from .evaluation import EvalResult, differences
from .figures import ALIASES, OF_DATA_SETS, PAIRED

BOUNDS = ("mean", "low", "high")
ROUNDING = 1e-9  # so that 47.5 % against 50 % is a change of exactly -5 %
FORM = re.compile(
    r"\s*(?P<figure>\w+)(?:\.(?P<bound>low|high))?(?:@(?P<concept>[^<>=\x00-\x1f]+?)|:(?P<data_set>[^<>=\x00-\x1f]+?))?"
    r"\s*(?P<sign>>=|<=)\s*(?P<value>[+-]?\d+(?:\.\d+)?)\s*(?P<unit>%|pt)?\s*"
)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one requirement.

    Attributes:
        requirement: As it was written.
        found: The number that was compared: percent, percent of change, or points; None if there is none.
        met: Whether it holds.
        note: The worst concept, or why nothing could be compared.
    """

    requirement: str
    found: float | None
    met: bool
    note: str = ""

    def __str__(self) -> str:
        unit = "pt" if re.search(r"\d\s*pt\s*$", self.requirement) else "%"
        parts = [f"found {self.found:.1f} {unit}"] if self.found is not None else []
        return ", ".join([*parts, *([self.note] if self.note else [])])


@dataclass(frozen=True)
class Requirement:
    """A condition on one figure.

    Attributes:
        text: As it was written.
        figure: A name of `figures.PAIRED` or `figures.OF_DATA_SETS`.
        bound: ``mean``, or ``low`` or ``high`` of its 95 % interval.
        concept: One concept, ``*`` for every one, or empty for the whole set.
        data_set: One zero-shot data set, or empty for the mean over all.
        sign: ``>=`` or ``<=``.
        value: In percent; with the unit ``%`` the change in percent of the baseline's value, with ``pt`` in points.
        unit: Empty, ``%`` or ``pt``.
    """

    text: str
    figure: str
    bound: str
    concept: str
    data_set: str
    sign: str
    value: float
    unit: str

    def check(self, result: EvalResult, baseline: EvalResult | None = None, seed: int = 0) -> Verdict:
        """Compare with a result; a requirement that cannot be compared is not met, and the verdict gives the reason.

        Args:
            result: From `uwm.evaluate`.
            baseline: Of the same pairs, for changes.
            seed: For the bootstrap of a change's interval.
        """
        try:
            if self.unit and self.bound != "mean":
                return self._verdict(self._bound_of_change(result, baseline, seed))
            if self.concept != "*":
                return self._verdict(self._found(result, baseline, self.concept))
            if not result.by_concept:
                raise _NothingToCompare("the pairs name no concepts")
            by_concept = {concept: self._found(result, baseline, concept) for concept in result.by_concept}
        except _NothingToCompare as reason:
            return Verdict(self.text, None, False, str(reason))
        worst = (min if self.sign == ">=" else max)(by_concept, key=lambda concept: by_concept[concept])
        return self._verdict(by_concept[worst], f"worst concept {worst}")

    def _verdict(self, found: float, note: str = "") -> Verdict:
        beyond = found - self.value if self.sign == ">=" else self.value - found
        return Verdict(self.text, found, beyond >= -ROUNDING, note)

    def _bound_of_change(self, result: EvalResult, baseline: EvalResult | None, seed: int) -> float:
        assert baseline is not None
        return 100 * differences(result, baseline, seed)[self.figure]["difference"][BOUNDS.index(self.bound)]

    def _found(self, result: EvalResult, baseline: EvalResult | None, concept: str) -> float:
        """The number to compare: percent, percent of change, or points."""
        now = 100 * self._figure(result, concept)
        if not self.unit:
            return now
        assert baseline is not None
        before = 100 * self._figure(baseline, concept)
        if self.unit == "pt":
            return now - before
        if before == 0:
            of = f" of {concept}" if concept else ""
            raise _NothingToCompare(f"the baseline's {self.figure}{of} is 0, so no change in % exists; use pt")
        return 100 * (now / before - 1)

    def _figure(self, result: EvalResult, concept: str) -> float:
        """A figure of the set or of a concept; for zero-shot figures the mean over the data sets that have it."""
        if self.figure not in OF_DATA_SETS:
            figures = result.by_concept.get(concept, {}) if concept else result.figures
            if self.figure not in figures:
                raise _NothingToCompare(f"there is no {self.figure}" + (f" of {concept}" if concept else ""))
            return figures[self.figure][BOUNDS.index(self.bound)]
        values = [v[self.figure] for n, v in result.zero_shot.items() if self.figure in v and self.data_set in ("", n)]
        if not values:
            raise _NothingToCompare(f"no data set {self.data_set}".rstrip() + f" has a {self.figure}")
        return sum(values) / len(values)


class _NothingToCompare(Exception):
    """The number that a requirement needs does not exist; the text gives the reason."""


def parse_requirement(text: str, has_baseline: bool) -> Requirement:
    """Read a requirement.

    ``GS>=4.5`` (percent), ``GS.low>=3`` (the low end of its interval), ``top1>=-2%`` (change in percent of the
    baseline's value), ``R1_ts_vs>=-2pt`` (points against the baseline), ``GS.low>=+0pt`` (the low end of the paired
    interval of that difference), ``P_vu@weapons>=10``, ``P_vu@*>=5`` (every concept), ``zero_shot>=-2%`` (mean top-1),
    ``top1:pets>=60`` (one data set).

    Raises:
        BadInput: Another form, a missing baseline, or a bound that does not exist.
    """
    found = FORM.fullmatch(text)
    if not found:
        raise BadInput(f"--require {text!r}: expected FIGURE>=NUMBER or FIGURE<=NUMBER, such as GS>=4.5 or top1>=-2%")
    parts = {name: part or "" for name, part in found.groupdict().items()}
    figure, bound = ALIASES.get(parts["figure"], parts["figure"]), parts["bound"] or "mean"
    value, unit = float(parts["value"]), parts["unit"]
    if unit and not has_baseline:
        raise BadInput(f"--require {text!r}: a change in {unit} needs --baseline MODEL to compare with")
    if unit and value and parts["value"][0] not in "+-":
        raise BadInput(
            f"--require {text!r}: write {parts['value']} for percent, +{parts['value']}{unit} for a change of so much"
        )
    if bound != "mean" and (figure in OF_DATA_SETS or unit == "%" or (unit and parts["concept"])):
        raise BadInput(
            f"--require {text!r}: there is no such .{bound}; intervals have SafeGround and retrieval, and their change "
            "in pt over the whole set"
        )
    if parts["concept"] if figure in OF_DATA_SETS else parts["data_set"]:
        raise BadInput(f"--require {text!r}: expected FIGURE@CONCEPT of the pairs, or top1:DATASET of --zero-shot")
    return Requirement(text.strip(), figure, bound, parts["concept"], parts["data_set"], parts["sign"], value, unit)


def check_known(requirements: Iterable[Requirement], concepts: Sequence[str], data_sets: Sequence[str]) -> None:
    """Refuse figures, concepts and data sets that will not be measured. Raises BadInput.

    Args:
        requirements: From `parse_requirement`.
        concepts: Those of the set.
        data_sets: Names of the zero-shot data sets that will be measured.
    """
    for requirement in requirements:
        figure, known = requirement.figure, (*PAIRED, *(OF_DATA_SETS if data_sets else ()))
        if figure not in known:
            hint = "; zero-shot figures need --zero-shot" if figure in OF_DATA_SETS else ""
            raise BadInput(f"--require: no figure {figure!r}{hint}; there are {', '.join(known)}")
        for what, asked, there in (
            ("concept", requirement.concept, [*concepts, "*"] if concepts else []),
            ("data set", requirement.data_set, data_sets),
        ):
            if asked and asked not in there:
                listed = ", ".join(there) or "none"
                raise BadInput(f"--require {requirement.text!r}: no {what} {asked!r}; there are {listed}")


# ---------------------------------------------------------------- verdicts for people and for CI


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
