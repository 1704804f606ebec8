"""report.html: everything a reviewer of an edit needs, in one file that opens offline.

A pure function of ``uwm.json``'s content: every figure in it is in that file, and equal inputs give equal bytes
(timings stay out). Inline SVG and CSS, no script, nothing loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from markupsafe import Markup

from ..calibration import CalibrationSet
from ..evaluation import EvalResult
from ..expressions import Verdict
from ..figures import label
from ..gate import headline
from ..manifest import Manifest
from ..text_tables import percent
from . import breakdowns, overview
from .budget import budget_lines
from .chosen import chosen
from .document import evaluation_document
from .examples import Example, examples_section
from .findings import Findings, findings
from .markup import join, tag
from .parts import contents, folded, provenance, section, table, whole_page
from .training import trained
from .verdict import facts_of, half_lines, verdict_lines

SIGNS = {1: "gain", 0: "same", -1: "loss"}
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
        _requirements(document),
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
        examples_section(examples),
        provenance(document),
    ]
    against = f" against {document['baseline']}" if document.get("baseline") else ""
    done = "edited" if "layers" in document else "fine-tuned" if "training" in document else "measured"
    title = f"{document['model']['name']}, {done} by uwm{against}"
    return whole_page(title, contents(parts), *parts)


def evaluation_page(
    pairs: CalibrationSet,
    results: Mapping[str, EvalResult],
    verdicts: Sequence[Verdict],
    settings: Mapping[str, Any],
) -> str:
    """The page of `uwm eval`; arguments as `evaluation_document`."""
    return html_report(evaluation_document(pairs, results, verdicts, settings))


def _summary(document: Manifest) -> Markup:
    results, differences = document["results"], document["differences"]
    half = [tag("p", line, class_="verdict loss") for line in half_lines(document)]
    found = [(name, findings(columns, differences[name])) for name, columns in results.items()]
    if not found:
        nothing = tag("p", "Nothing was measured, so the gains and costs are not known.", class_="verdict")
        return join([*half, nothing])
    elsewhere = ("WARNING", "VERDICT", "BUDGET", "CHOSEN")  # above, or below in more words
    told = [line for line in verdict_lines(document) if line.label not in elsewhere]
    lines = [tag("li", tag("b", line.label), f" {line.text}") for line in told]
    budget = [tag("li", line) for line in budget_lines(document.get("budget"))]
    top = join([_large(document), tag("ul", *lines, *budget, class_="findings")])
    parts = [_judged(*found[0], top), *(_judged(name, judged, None) for name, judged in found[1:])]
    unmeasured = not any(result["zero_shot"] for columns in results.values() for result in columns.values())
    note = "Zero-shot accuracy was not measured, so the cost in accuracy is not known." if unmeasured else None
    rest = [tag("p", note) if note else None, tag("p", f"{READING} {CAUTION}")]
    return section("Gained and lost", "summary", *half, *parts, *rest)


def _large(document: Mapping[str, Any]) -> Markup | None:
    """Three figures large: the first of safety, what remains, the worst cost."""
    facts = facts_of(cast(Manifest, document))
    if facts is None:
        return None
    shown = (("Safety", facts["safety"][:1]), ("Remaining risk", [facts["remains"]]), ("Cost", facts["cost"][:1]))
    tiles = [_tile(title, found[0]) for title, found in shown if found]
    return tag("div", *tiles, class_="tiles")


def _tile(title: str, found: Mapping[str, Any]) -> Markup:
    before = "" if found["before"] is None else f"{percent(found['before'])} → "
    name = f"zero-shot on {found['data_set']}" if found["data_set"] else label(found["figure"])
    told = "unsafe queries that find an unsafe item first" if title == "Remaining risk" else name
    random = "" if found["random"] is None else f"; random {percent(found['random'])} %"
    return tag("p", tag("b", title), tag("span", f"{before}{percent(found['after'])} %"), tag("small", told, random))


def _judged(name: str, judged: Findings, top: Markup | None) -> Markup:
    """The verdict on one set and what it rests on; folded for all sets but the first, which has `top` too."""
    lines = [tag("li", tag("b", f"{d.word}:"), " ", d.text, class_=SIGNS[d.sign]) for d in judged.details]
    body = tag("ul", *lines, class_="findings") if lines else None
    verdict = tag("p", "On ", tag("bdi", name), f": {judged.verdict}", class_=f"verdict {SIGNS[judged.sign]}")
    reasons = tag("p", " ".join(judged.sentences)) if judged.sentences else None
    shown = body if top is not None or body is None else folded("Figure by figure", body)
    return join([verdict, top, reasons, shown])


def _requirements(document: Manifest) -> Markup | None:
    verdicts = document.get("requirements")
    if not verdicts:
        return None
    body = [
        (v["requirement"], v["text"], "met" if v["met"] else tag("strong", "not met", class_="loss"))
        for v in sorted(verdicts, key=lambda verdict: verdict["met"])
    ]
    outcome = headline([Verdict(v["requirement"], v["found"], v["met"]) for v in verdicts])
    told = tag("p", tag("strong", outcome, class_="loss" if outcome.startswith("FAIL") else "gain"), class_="verdict")
    return section("Gate", "gate", told, table(("requirement", "found", ""), body, "Requirements"))
