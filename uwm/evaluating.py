"""Evaluation from settings to verdicts: what `uwm eval` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .cache import EmbeddingCache
from .calibration import CalibrationSet, read_calibration
from .clock import now
from .embedding import quadruples
from .evaluation import EvalResult, collapse_notes, concepts_of, differences, evaluate
from .expressions import Verdict, check_known, parse_requirements
from .gate import is_junit, junit
from .inputs import (
    Calibrated,
    Opening,
    calibrated_on,
    keep_work,
    model_warnings,
    says_nothing,
    work_is_done,
)
from .knowledge import DataSet, open_data_sets
from .manifest import VerdictFacts
from .models import Model, load
from .outputs import MANIFEST, OutputFile, OutputText, appended_file, output_file, refuse_one_place
from .report import Section, as_markdown, evaluation_page, is_page, sections, verdict_facts
from .shipped_files import DEMO_MODEL
from .stages import finish, plan, stage
from .statistics.batches import Progress
from .unfinished import Unfinished

APART = "pairs apart from calibration"  # what every gate requires


@dataclass(frozen=True)
class EvalRecipe(Opening):
    """Everything that decides an evaluation. The fields are flags of `uwm eval`.

    Attributes:
        model, baseline: References; without a baseline nothing is compared.
        pairs, split, safe_images, unsafe_images: The set to measure on, as in `uwm.read_calibration`.
        zero_shot, data_root, templates, ensemble: As in `uwm.knowledge.open_data_sets`.
        requirements: As in `uwm.expressions.parse_requirements`.
        allow_calibration_pairs: Let a gate pass although pairs share captions or images with what calibrated the model.
        cache: Read and keep embeddings in the user's cache.
    """

    model: str
    pairs: str
    baseline: str | None = None
    split: str | None = None
    safe_images: str | None = None
    unsafe_images: str | None = None
    zero_shot: tuple[str, ...] = ()
    data_root: str | None = None
    templates: str | None = None
    ensemble: bool = False
    requirements: tuple[str, ...] = ()
    allow_calibration_pairs: bool = False
    arch: str | None = None
    quick_gelu: bool | None = None
    preprocess: str | None = None
    cache: bool = True


@dataclass(frozen=True)
class ReportFiles:
    """The files to write; None for those that nobody asked for."""

    html: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class Evaluated:
    """The outcome of an evaluation.

    Attributes:
        recipe, pairs: The settings, and the quadruples that were measured.
        results: ``baseline``, if there is one, and ``model``.
        changes: From `uwm.evaluation.differences`; empty without a baseline.
        verdicts: One a requirement.
        warnings: What a user should know about the models and the sets.
    """

    recipe: EvalRecipe
    pairs: CalibrationSet
    results: dict[str, EvalResult]
    changes: dict[str, dict[str, Any]]
    verdicts: list[Verdict]
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        results = {column: result.as_dict() for column, result in self.results.items()}
        required = [asdict(verdict) for verdict in self.verdicts]
        return {**results, "differences": self.changes, "requirements": required, "verdict": self.verdict()}

    def verdict(self) -> VerdictFacts:
        """The verdict on the pairs."""
        name = self.pairs.name + (f", {self.recipe.split}" if self.recipe.split else "")
        columns = {column: result.as_dict() for column, result in self.results.items()}
        found = verdict_facts({name: columns}, {name: {"model": {"baseline": self.changes}} if self.changes else {}})
        assert found is not None
        return found

    def sections(self, *, all_figures: bool = False, by_concept: bool = False) -> list[Section]:
        """Everything as titled tables; arguments as in `uwm.report.sections`."""
        return self._sections(self.verdicts, all_figures, by_concept)

    def tables(self, *, all_figures: bool = False, by_concept: bool = False) -> list[Section]:
        """`sections` without the verdicts on requirements."""
        return self._sections((), all_figures, by_concept)

    def _sections(self, verdicts: Sequence[Verdict], all_figures: bool, by_concept: bool) -> list[Section]:
        shown = {"all_figures": all_figures, "by_concept": by_concept}
        return sections(self.pairs.name, self.results, self.changes, verdicts, **shown)


def run_evaluation(
    recipe: EvalRecipe, *, progress: Progress | None = None, tell: Callable[[Evaluated], None] | None = None
) -> Evaluated:
    """Measure a model, compare it with a baseline, and check requirements.

    Args:
        recipe: The settings.
        progress: As in `uwm.score`.
        tell: Writes what was found; the work is kept until then.

    Raises:
        UwmError: Of every kind; a requirement that is not met raises nothing, see `uwm.gate.demand`.
    """
    has_baseline = recipe.baseline is not None
    required = [one for text in recipe.requirements for one in parse_requirements(text, has_baseline)]
    images: dict[str, Any] = {"safe_images": recipe.safe_images, "unsafe_images": recipe.unsafe_images}
    whole = read_calibration(recipe.pairs, split=recipe.split, **images).limit(recipe.limit, recipe.seed)
    chosen = quadruples(whole)
    prompts: dict[str, Any] = {key: getattr(recipe, key) for key in ("data_root", "templates", "ensemble")}
    data_sets = open_data_sets(recipe.zero_shot, **prompts)
    check_known(required, concepts_of(chosen), [*data_sets], "--require")
    told, results, learnt, work = [*_warnings(whole, data_sets)], {}, [], []
    references = {"baseline": recipe.baseline, "model": recipe.model}
    asked = [column for column, reference in references.items() if reference is not None]
    plan(progress, _stages(asked, 4.0 * len(chosen) + sum(map(len, data_sets.values())) + 1))
    for column, reference in references.items():
        if reference is not None:
            stage(progress, f"loading the {column}", 0)
            opened = load(reference, **recipe.opening_of(reference, references.values()))
            learnt += _learnt(column, opened, chosen)
            if required and opened.checkpoint is not None and says_nothing(opened.checkpoint.path):
                told.append(f"{column}: its {MANIFEST} does not say which pairs calibrated it, so no gate can tell")
            work.append(_kept(recipe, column, opened, chosen, data_sets, progress))
            stage(progress, column, 2 + len(data_sets))
            results[column] = _measure(recipe, opened, chosen, data_sets, progress)
            notes = (*model_warnings(opened, {"pairs": chosen}, data_sets), *opened.notes)
            told += [f"{column}: {note}" for note in notes]
    finish(progress)
    told += collapse_notes(results)
    model, baseline = results["model"], results.get("baseline")
    changes = {} if baseline is None else differences(model, baseline, recipe.seed)
    verdicts = [requirement.check(model, baseline, changes) for requirement in required]
    if required and not recipe.allow_calibration_pairs:
        verdicts += [_not_apart(one) for one in learnt if one.column == "model"]
    told += [f"{one.column}: {one.words}; measure on pairs that share none" for one in learnt]
    found = Evaluated(recipe, chosen, results, changes, verdicts, tuple(told))
    if tell is not None:
        tell(found)
    work_is_done(*work)
    return found


def _stages(columns: Iterable[str], measured: float) -> dict[str, float]:
    """The stages of an evaluation, and how long each takes beside the others: by what goes through a model."""
    stages = [{f"loading the {column}": 0.2 * measured, column: measured} for column in columns]
    return {name: weight for each in stages for name, weight in each.items()}


def _kept(
    recipe: EvalRecipe,
    column: str,
    model: Model,
    pairs: CalibrationSet,
    data_sets: Mapping[str, DataSet],
    progress: Progress | None,
) -> Unfinished | None:
    """Keep what the model does, where it may be."""
    given: dict[str, Any] = {"data_sets": data_sets.values(), "progress": progress}
    return keep_work(f"eval {column}", asdict(recipe), model, [pairs], **given) if recipe.cache else None


def _learnt(column: str, model: Model, pairs: CalibrationSet) -> list[Calibrated]:
    """What the pairs share with those that calibrated a model, where they share anything."""
    found = None if model.checkpoint is None else calibrated_on(column, model.checkpoint.path, pairs)
    return [found] if found is not None and found.found.pairs else []


def _not_apart(learnt: Calibrated) -> Verdict:
    """Fails a gate on pairs that calibrated the model."""
    return Verdict(APART, None, False, f"{learnt.words}; allow it with --allow-calibration-pairs")


def _measure(
    recipe: EvalRecipe,
    model: Model,
    pairs: CalibrationSet,
    data_sets: Mapping[str, DataSet],
    progress: Progress | None,
) -> EvalResult:
    return evaluate(
        model,
        pairs,
        data_sets=data_sets,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        seed=recipe.seed,
        progress=progress,
        cache=EmbeddingCache.default() if recipe.cache else None,
    )


def _warnings(pairs: CalibrationSet, data_sets: Mapping[str, DataSet]) -> Iterator[str]:
    yield from pairs.warnings()
    yield from (note for data in data_sets.values() for note in data.odd)
    if len(pairs.splits()) > 1:
        yield f"measuring on all splits ({', '.join(pairs.splits())}); see --split"


@dataclass(frozen=True)
class Reports:
    """The report files of an evaluation, while they are locked; None for those that nobody asked for."""

    html: OutputFile | None = None
    junit: OutputFile | None = None
    markdown: OutputText | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of their places."""
        return tuple(note for file in (self.html, self.junit, self.markdown) if file for note in file.notes)

    def write(self, done: Evaluated, tables: list[Section]) -> None:
        """Write the page and the JUnit file, and add the tables to the Markdown file. Raises ResourceFault."""
        title = f"uwm eval {Path(done.recipe.model).name}"
        of = (done.pairs, done.results, done.verdicts, asdict(done.recipe), {"date": now()})
        page = partial(evaluation_page, *of)
        self.put(title, done.verdicts, tables, page)

    def put(self, title: str, verdicts: Sequence[Verdict], tables: Sequence[Section], page: Callable[[], str]) -> None:
        """Write the files that were asked for; `page` makes the page. Raises ResourceFault."""
        if self.junit is not None:
            self.junit.write(junit(verdicts, title))
        if self.markdown is not None:
            self.markdown.write(as_markdown(tables, title).encode())
        if self.html is not None:
            self.html.write(page().encode())


def open_reports(recipe: EvalRecipe, files: ReportFiles) -> AbstractContextManager[Reports]:
    """`hold_reports` of an evaluation, whose inputs are not to be written over."""
    return hold_reports(_read(recipe), files)


@contextmanager
def hold_reports(inputs: Iterable[Path], files: ReportFiles) -> Iterator[Reports]:
    """Check the report files before the long work, and hold their locks until they are written.

    A page and a JUnit file that uwm wrote are replaced; the Markdown file is added to, whoever wrote it.

    Raises:
        BadInput: Two of them are one file, one is an input or lies in one, or is a file that uwm did not write.
        ResourceFault: One of them cannot be written.
    """
    asked = [file for file in vars(files).values() if file is not None]
    refuse_one_place(asked)
    inputs = [*inputs]
    with ExitStack() as stack:

        def entered(opened: AbstractContextManager[Any]) -> Any:
            return stack.enter_context(opened)

        yield Reports(
            None if files.html is None else entered(output_file(files.html, inputs, True, is_page)),
            None if files.junit is None else entered(output_file(files.junit, inputs, True, is_junit)),
            None if files.markdown is None else entered(appended_file(files.markdown, inputs)),
        )


def _read(recipe: EvalRecipe) -> Iterable[Path]:
    """What is read of this machine's files; references to the Hub are not looked up for that."""
    images = (recipe.safe_images, recipe.unsafe_images)
    named = (recipe.model, recipe.baseline, recipe.pairs, *images, recipe.data_root, *recipe.zero_shot)
    for reference in (*named, recipe.templates, recipe.preprocess):
        if reference and Path(reference).exists():
            yield Path(reference)
    if "demo" in (recipe.model, recipe.baseline):
        yield DEMO_MODEL
