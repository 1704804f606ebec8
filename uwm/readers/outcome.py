"""The outcome of measuring a reader: as JSON, as tables, and what the page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..escaping import clean
from ..expressions import Requirement, Verdict
from ..figures import Figure
from ..report.evaluation import Section, verdict_rows
from ..report.examples import thumbnail
from ..text_tables import interval, percent, signed, text_table
from .fid import Distances
from .results import ReaderResult, differences

LEGEND = "Percent [95 % interval: bootstrap; at 0 and 100 exact]. Lower is better where it is said."
CHANGE_LEGEND = (
    "Difference: model − baseline in points [paired bootstrap 95 % interval]; gained, lost: how many rose, fell."
)


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image, as a data URI."""

    uri: str

    @classmethod
    def of(cls, file: Path) -> Thumbnail:
        """Of an image file."""
        return cls(thumbnail(file))


@dataclass(frozen=True)
class Example:
    """What was made of one input: its words or its image, by column.

    Attributes:
        side: ``safe`` or ``unsafe``.
        given: The image that was described, or the prompt that was drawn.
        made: Column -> the caption, or the image drawn.
    """

    side: str
    given: str | Thumbnail
    made: Mapping[str, str | Thumbnail]


@dataclass(frozen=True)
class ReaderOutcome:
    """What was measured of a reader.

    Attributes:
        title: Of reports.
        name: What was measured on.
        things: What is counted: ``images`` or ``prompts``.
        known: Name -> figure, of all that were measured.
        results: ``baseline``, where there is one, and ``model``.
        changes: From `uwm.readers.results.differences`; empty without a baseline.
        verdicts: One a requirement.
        settings: What decided the figures, without local paths.
        judges: What judged, in words, by figure or detector.
        distances: FID of the images of safe prompts, where it was asked for.
        warnings: What a user should know.
        examples: Drawn at random with the seed, where they were asked for.
    """

    title: str
    name: str
    things: str
    known: Mapping[str, Figure]
    results: Mapping[str, ReaderResult]
    changes: Mapping[str, Mapping[str, Any]]
    verdicts: Sequence[Verdict]
    settings: Mapping[str, Any]
    judges: Mapping[str, str]
    distances: Distances | None = None
    warnings: tuple[str, ...] = ()
    examples: Sequence[Example] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; only ``run`` differs from run to run."""
        return {
            **{column: result.as_dict() for column, result in self.results.items()},
            "differences": self.changes,
            "requirements": [asdict(verdict) for verdict in self.verdicts],
            "judges": self.judges,
            **({} if self.distances is None else {"fid": asdict(self.distances)}),
            "run": {"seconds_each": {column: result.seconds for column, result in self.results.items()}},
        }

    def heading(self) -> str:
        """What stands above the main table."""
        counts = next(iter(self.results.values())).counts
        return f"{self.name} ({', '.join(f'{count} {side}' for side, count in counts.items())} {self.things})"

    def sections(self, by_concept: bool = False) -> list[Section]:
        """Everything as titled tables."""
        found = [(self.heading(), self.rows())]
        if self.distances is not None:
            found.append((self.distance_heading(), self.distance_rows()))
        if by_concept:
            found += [
                (f"{column}, by concept", self.concept_rows(result))
                for column, result in self.results.items()
                if result.by_concept
            ]
        return found + ([("requirements", verdict_rows(self.verdicts))] if self.verdicts else [])

    def rows(self) -> list[list[str]]:
        """One row a figure, one column a result, and the change."""
        table = [["", *self.results, *(["difference", "gained", "lost"] if self.changes else [])]]
        for name, figure in self.known.items():
            cells = [interval(r.figures[name]) if name in r.figures else "" for r in self.results.values()]
            table.append([described(figure), *cells, *(self._change(name) if self.changes else [])])
        return table

    def distance_heading(self) -> str:
        """What stands above the table of distances."""
        assert self.distances is not None
        return f"{self.distances.words}, images of safe prompts to {self.distances.reference}"

    def distance_rows(self) -> list[list[str]]:
        """FID of each column that has one."""
        assert self.distances is not None
        found = self.distances.columns
        return [["", *found], ["FID (lower)", *(f"{value:.4g}" for value in found.values())]]

    def _change(self, name: str) -> list[str]:
        if name not in self.changes:
            return ["", "", ""]
        change = self.changes[name]
        mean, low, high = map(signed, change["difference"])
        return [f"{mean} [{low}, {high}]", str(change["gained"]), str(change["lost"])]

    def concept_rows(self, result: ReaderResult) -> list[list[str]]:
        """Means in percent, one row a concept."""
        body = [
            [concept, *(percent(figures[name][0]) if name in figures else "" for name in self.known)]
            for concept, figures in result.by_concept.items()
        ]
        return [["", *(figure.label for figure in self.known.values())], *body]

    def text(self, by_concept: bool = False) -> str:
        """For the terminal."""
        tables = [f"{clean(title)}\n{text_table(table)}" for title, table in self.sections(by_concept)]
        return "\n\n".join([*tables, " ".join([LEGEND, *([CHANGE_LEGEND] if self.changes else []), *self._speed()])])

    def _speed(self) -> list[str]:
        took = [f"{result.seconds:.3g} s ({column})" for column, result in self.results.items() if result.seconds]
        return [f"Each took {', '.join(took)}."] if took else []


def described(figure: Figure) -> str:
    """A figure's label, and that less of it is better."""
    return f"{figure.label} (lower)" if figure.lower_is_better else figure.label


def judged(
    results: Mapping[str, ReaderResult], required: Sequence[Requirement], seed: int
) -> tuple[dict[str, dict[str, Any]], list[Verdict]]:
    """The paired differences of ``model`` to ``baseline``, where there is one, and a verdict on each requirement."""
    model, baseline = results["model"], results.get("baseline")
    changes = {} if baseline is None else differences(model, baseline, seed)
    return changes, [requirement.check(model, baseline, changes) for requirement in required]
