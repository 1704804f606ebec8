"""What `uwm eval` shows: figures, changes against the baseline, figures by concept, requirements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..escaping import markdown
from ..evaluation import EvalResult
from ..expressions import Verdict
from ..figures import OF_CLASSES, SAFEGROUND, label
from ..gate import failed_first, headline
from ..text_tables import markdown_table
from .tables import HEADLINE, LEGEND, heading, rows

Section = tuple[str, list[list[str]]]  # a title and a table
CHANGE_LEGEND = (
    "Difference: model − baseline in points [paired bootstrap 95 % interval]; gained, lost: queries for which the "
    "figure holds now and did not before, and the other way round."
)
ALL_LEGEND = (
    "Unsafe top-1: share of unsafe queries whose best item of all is an unsafe one; lower is better. Safe R@1, unsafe "
    "R@1, unsafe top-1: means of both directions. Safety: mean of PU and of 1 − unsafe top-1."
)


def sections(
    name: str,
    results: Mapping[str, EvalResult],
    changes: Mapping[str, Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    *,
    all_figures: bool = False,
    by_concept: bool = False,
) -> list[Section]:
    """Everything as titled tables, the verdicts on requirements first.

    Args:
        name: Of the set.
        results: Column name -> result.
        changes: From `uwm.evaluation.differences`; empty without a baseline.
        verdicts: On the requirements.
        all_figures: R@5, 10, 20, unsafe top-1 and means too.
        by_concept: A table of means by concept for every result.
    """
    table = rows(results, all_figures=all_figures)
    if changes:
        table = _with_changes(table, results, changes)
    found = [(headline(verdicts), verdict_rows(verdicts))] if verdicts else []
    found.append((heading(name, next(iter(results.values())).pairs), table))
    if by_concept:
        found += [(f"{column}, by concept", concept_rows(result, all_figures)) for column, result in results.items()]
    return found


def _with_changes(
    table: list[list[str]], results: Mapping[str, EvalResult], changes: Mapping[str, Mapping[str, Any]]
) -> list[list[str]]:
    """The table of figures with columns for what changed; of safe and unsafe classes only by how much."""
    cells = {label(name): _change(**change) for name, change in changes.items()}
    before, after = (result.zero_shot for result in results.values())
    for data_set, scores in before.items():
        for name in (name for name in OF_CLASSES if name in scores):
            difference = 100 * (after[data_set][name] - scores[name])
            cells[label(f"{name}:{data_set}")] = [f"{difference:+.1f}", "", ""]
    head, *body = table
    return [[*head, "difference", "gained", "lost"], *([*row, *cells.get(row[0], [""] * 3)] for row in body)]


def _change(difference: tuple[float, float, float], gained: int, lost: int) -> list[str]:
    mean, low, high = (f"{100 * value:+.1f}" for value in difference)
    return [f"{mean} [{low}, {high}]", str(gained), str(lost)]


def concept_rows(result: EvalResult, all_figures: bool = False) -> list[list[str]]:
    """Means in percent, one row a concept: SafeGround's nine, with `all_figures` R@1 too."""
    names = HEADLINE if all_figures else SAFEGROUND
    body = [
        [concept, str(result.concept_pairs[concept]), *(f"{100 * figures[name][0]:.1f}" for name in names)]
        for concept, figures in result.by_concept.items()
    ]
    return [["", "pairs", *(label(name) for name in names)], *body]


def verdict_rows(verdicts: Iterable[Verdict]) -> list[list[str]]:
    """One row a requirement, those that are not met first."""
    body = [[v.requirement, str(v), "met" if v.met else "not met"] for v in failed_first(verdicts)]
    return [["requirement", "found", ""], *body]


def legend(all_figures: bool, changes: bool) -> str:
    """What the names of the tables mean, for the terminal."""
    return " ".join([LEGEND, *([ALL_LEGEND] if all_figures else []), *([CHANGE_LEGEND] if changes else [])])


def as_markdown(found: Sequence[Section], title: str) -> str:
    """For a summary page, such as $GITHUB_STEP_SUMMARY."""
    parts = [f"## {markdown(title)}"]
    for name, table in found:
        parts.append(f"### {markdown(name)}\n\n" + markdown_table(table))
    return "\n\n".join(parts) + "\n"
