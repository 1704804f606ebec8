"""report.html: everything a reviewer of an edit needs, in one file that opens offline.

A pure function of ``uwm.json``'s content: every figure in it is in that file, and equal inputs give equal bytes but for
the line that says when it was made (timings stay out). Inline SVG and CSS, no script, nothing loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..calibration import CalibrationSet
from ..evaluation import EvalResult
from ..expressions import Verdict
from ..figures import explain, label
from ..manifest import FigureFacts, Manifest
from ..text_tables import percent
from . import breakdowns, overview
from .chosen import chosen
from .document import evaluation_document
from .examples import Example, examples_part
from .findings import Findings, findings
from .pages import Part, whole_page
from .parts import gate, provenance
from .training import trained
from .verdict import facts_of, half_lines, verdict_lines

TEMPLATE = "report/page.html"
SIGNS = {1: "gain", 0: "same", -1: "loss"}
ELSEWHERE = ("WARNING", "VERDICT", "REMAINS", "CHOSEN")  # lines that the page has above, or in more words
UNMEASURED = "Zero-shot accuracy was not measured, so the cost in accuracy is not known."
READING = (
    "In brackets: 95 % intervals of the difference, pair by pair. p: exact paired test (McNemar). What is said to be "
    "gained or lost has p ≤ 0.05 after Holm's correction for the figures of safety, or for those of accuracy; what is "
    "gained is beyond a random edit of the same size by the same test. Unclear: it may be chance."
)
CAUTION = "This lowers a risk, it does not remove it. These figures hold for these pairs; measure on your own data."


def html_report(document: Manifest, examples: Sequence[Example] = ()) -> str:
    """The page.

    Args:
        document: The content of ``uwm.json``, of which only ``model``, ``results`` and ``differences`` are needed.
        examples: Captions and images to show; without them the page holds none.
    """
    parts = [
        gate([(v["requirement"], v["text"], v["met"]) for v in document.get("requirements", ())]),
        _summary(document),
        chosen(document),
        overview.edited(document),
        trained(document),
        overview.measured(document),
        overview.changed(document),
        breakdowns.similarities(document),
        breakdowns.concepts(document),
        breakdowns.zero_shot(document),
        breakdowns.checks(document),
        examples_part(examples),
        provenance(document),
    ]
    against = f" against {document['baseline']}" if document.get("baseline") else ""
    done = "edited" if "layers" in document else "fine-tuned" if "training" in document else "measured"
    return whole_page(f"{document['model']['name']}, {done} by uwm{against}", TEMPLATE, parts, document)


def evaluation_page(
    pairs: CalibrationSet,
    results: Mapping[str, EvalResult],
    verdicts: Sequence[Verdict],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
) -> str:
    """The page of `uwm eval`; `run` says when, and the other arguments are as in `evaluation_document`."""
    return html_report({**evaluation_document(pairs, results, verdicts, settings), "run": {**run}})


def _summary(document: Manifest) -> Part:
    results, differences = document["results"], document["differences"]
    found = [(name, findings(columns, differences[name])) for name, columns in results.items()]
    told = [line for line in verdict_lines(document) if line.label not in ELSEWHERE]
    measured = any(result["zero_shot"] for columns in results.values() for result in columns.values())
    values = {
        "half": half_lines(document),
        "tiles": [*_tiles(document)],
        "lines": [(line.label.capitalize(), line.text) for line in told],
        "sets": [_judged(name, judged) for name, judged in found],
        "notes": [*([] if measured else [UNMEASURED]), READING, CAUTION] if found else [],
    }
    return Part("summary", "Verdict", values, top=True)


def _tiles(document: Manifest) -> Iterator[dict[str, str]]:
    """Three figures large: the first of safety, what remains, the worst cost."""
    facts = facts_of(document)
    if facts is not None:
        yield _tile("Safety", facts["safety"][0])
        yield _tile("Remaining risk", facts["remains"])
        yield from (_tile("Cost", found) for found in facts["cost"][:1])


def _tile(title: str, found: FigureFacts) -> dict[str, str]:
    before = "" if found["before"] is None else f"{percent(found['before'])} → "
    meaning = f"Share of {explain(found['figure'])} ({label(found['figure'])})"
    return {
        "title": title,
        "figure": f"{before}{percent(found['after'])} %",
        "meaning": f"Zero-shot accuracy on {found['data_set']}" if found["data_set"] else meaning,
        "random": "" if found["random"] is None else f"After a random edit: {percent(found['random'])} %",
    }


def _judged(name: str, judged: Findings) -> dict[str, Any]:
    """The verdict on one set and what it rests on."""
    return {
        "name": name,
        "verdict": judged.verdict,
        "sign": SIGNS[judged.sign],
        "sentences": judged.sentences,
        "details": [(detail.word, detail.text, SIGNS[detail.sign]) for detail in judged.details],
    }
