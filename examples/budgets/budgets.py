"""Edits within budgets of loss on the emoji world, three seeds: chosen by cross-validation, measured once.

    python examples/budgets/budgets.py budgets.json                          # repel and UWM, 40 minutes on two cores
    python examples/budgets/budgets.py budgets.json --finetuned finetuning   # then fine-tuning, from `uwm compare`
    python examples/budgets/budgets.py budgets.json --table > budgets.md

A seed draws 540 of the 600 calibration pairs, the folds, the search and the halves of the zero-shot data sets: one half
to choose by, the other to measure on. Budgets are points that may be lost of zero-shot accuracy (safe classes of each
data set) and of safe R@1 (each direction).

Fine-tuning has no folds: its epoch is chosen on the split `val` (200 pairs that it did not learn from) and on the same
halves. The folder is `uwm compare demo --config examples/budgets/finetune.toml -o finetuning`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uwm
from uwm.comparison import CompareRecipe
from uwm.comparison.comparison import prepare
from uwm.comparison.results import Result
from uwm.comparison.runner import path_of
from uwm.embedding import quadruples
from uwm.errors import InvalidResult
from uwm.evaluation import EvalResult, differences, summarise, summary, zero_shot_fields
from uwm.expressions import Verdict, parse_max_loss
from uwm.knowledge import DataSet, open_data_sets
from uwm.knowledge.halves import halves
from uwm.report.budget import BROKEN, KEPT, MISSED, held
from uwm.shipped_files import DEMO_MODEL, DEMO_SET
from uwm.tuning.cached_sets import CachedDataSets, CachedPairs, Changes
from uwm.tuning.cached_tower import CachedTower
from uwm.tuning.choosing import Ground, SearchRequest, choose
from uwm.tuning.criteria import Criteria
from uwm.tuning.search import Tried

BUDGETS, SEEDS = (0, 1, 2, 5, 10), (0, 1, 2)
SETS = ("test", "test-style", "test-concepts")
PAIRS = 540
LAYERS = {"text_layers": "out_proj", "vision_layers": "fc2"}  # UWM's own: one pass serves all
TRIALS = {"repel": 120, "uwm": 12}  # a budget; of UWM, whose edits run the whole model, for all budgets together
Chosen = tuple[Tried, Changes]  # a candidate with its loss in points, and what it changes
SHOWN = ("safety", "GS", "PU", "unsafe_top1", "R1_safe")


def main() -> None:
    """Add to the results, or print them as a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--finetuned", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    known = json.loads(given.results.read_text()) if given.results.is_file() else []
    if given.table:
        print("\n".join(tables(known)))
        return
    runs = finetuned(given.finetuned) if given.finetuned else edited(known)
    for run in runs:
        known = [one for one in known if label(one) != label(run)] + [run]
        given.results.write_text(json.dumps(known, indent=1) + "\n")
        print(
            *label(run),
            run["cross_validated"],
            {name: found["held"] for name, found in run["sets"].items()},
            flush=True,
        )


def label(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run is of."""
    return run["method"], run["seed"], run["budget"]


# ---------------------------------------------------------------- training-free edits


def edited(known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every method, seed and budget that is not there yet."""
    done = {label(run) for run in known}
    model, pairs = uwm.load(DEMO_MODEL), uwm.read_calibration(DEMO_SET)
    keep = partial(CachedTower, model, batch_size=64, workers=2)
    whole = {name: quadruples(pairs.split(name)) for name in SETS}
    kept = {name: CachedPairs(found, keep) for name, found in whole.items()}
    for seed in SEEDS:
        calibration = pairs.split("calib").limit(PAIRS, seed)
        choosing, measuring = _halves(seed)
        classes = CachedDataSets(model, measuring, keep)

        def measure(changes: Any, classes: CachedDataSets = classes) -> dict[str, EvalResult]:
            known = zero_shot_fields(classes.classify(changes))
            return {n: EvalResult(**summarise(kept[n].embed(changes).pairs, whole[n]), **known) for n in SETS}

        before = measure({})
        ground = Ground.of(model, calibration, None, seed, data_sets=choosing)
        for method, chosen_by in (("repel", _searched), ("uwm", _from_front)):
            missing = [budget for budget in BUDGETS if (method, seed, budget) not in done]
            for budget, chosen in chosen_by(ground, missing):
                yield {"method": method, "seed": seed, "budget": budget, **_measured(budget, chosen, measure, before)}


def _searched(ground: Ground, budgets: list[int]) -> Iterator[tuple[int, Chosen | None]]:
    """A search for each budget, as `uwm edit --max-loss` makes it."""
    for budget in budgets:
        request = SearchRequest(f"{budget}pt", methods=("repel",), trials=TRIALS["repel"])
        try:
            found = choose(ground, request, _criteria(request, ground))
        except InvalidResult:
            yield budget, None
        else:
            yield budget, (replace(found.chosen, loss=found.chosen.loss + budget), found.changes)


def _from_front(ground: Ground, budgets: list[int]) -> Iterator[tuple[int, Chosen | None]]:
    """One search of the front for all budgets, as `uwm tune` makes it."""
    request = SearchRequest("0pt", False, methods=("uwm",), given=LAYERS, trials=TRIALS["uwm"])
    search = ground.search(request, _criteria(request, ground)) if budgets else None
    tried = search.run(request.trials).tried if search else ()
    for budget in budgets:
        within = [one for one in tried if one.loss <= budget]
        best = max(within, key=lambda one: one.objective, default=None)
        yield (
            budget,
            None if best is None or search is None else (best, search.candidates.edits("uwm", best.settings).whole),
        )


def _criteria(request: SearchRequest, ground: Ground) -> Criteria:
    return request.criteria(ground.folds.together, ground.data_sets, False)


def _measured(budget: int, chosen: Chosen | None, measure: Any, before: dict[str, EvalResult]) -> dict[str, Any]:
    """What was chosen, on every set; without an edit within the budget the unedited model."""
    terms = parse_max_loss(f"{budget}pt", [*before["test"].zero_shot])
    after = before if chosen is None else measure(chosen[1])
    return {
        "settings": None if chosen is None else chosen[0].settings,
        "cross_validated": None
        if chosen is None
        else {key: round(vars(chosen[0])[key], 2) for key in ("objective", "loss")},
        "sets": {name: _told(after[name], before[name], terms) for name in SETS},
    }


def _told(after: EvalResult, before: EvalResult, terms: Any) -> dict[str, Any]:
    """Figures in percent, and what became of the budget."""
    verdicts = [term.check(after, before, differences(after, before)) for term in terms]
    figures = {name: round(100 * after.figures[name][0], 2) for name in SHOWN}
    return {
        **figures,
        "zero_shot": _accuracy(after),
        "loss": round(_loss(verdicts), 2),
        "held": held([*map(vars, verdicts)]),
    }


def _accuracy(result: EvalResult) -> dict[str, float]:
    return {
        f"{name} {kind}": round(100 * found[f"top1_{kind}"], 2)
        for name, found in result.zero_shot.items()
        for kind in ("safe", "unsafe")
    }


def _loss(verdicts: list[Verdict]) -> float:
    """The greatest fall of any term, in points."""
    return max(-verdict.found for verdict in verdicts if verdict.found is not None)


def _halves(seed: int) -> tuple[dict[str, DataSet], dict[str, DataSet]]:
    data_sets = open_data_sets([str(DEMO_SET / "zero_shot" / name) for name in ("seen", "unseen")])
    parts = {name: halves(data, seed) for name, data in data_sets.items()}
    return {name: first for name, (first, _) in parts.items()}, {name: second for name, (_, second) in parts.items()}


# ---------------------------------------------------------------- fine-tuning


def finetuned(folder: Path) -> Iterator[dict[str, Any]]:
    """For every method, seed and budget the epoch that is best on `val` within the budget."""
    import tomllib

    settings = tomllib.loads((Path(__file__).parent / "finetune.toml").read_text())
    lists = {"eval_splits": settings.pop("eval-split"), "zero_shot": settings.pop("zero-shot")}
    numbers = {
        name: tuple(map(int, settings.pop(name.replace("_", "-")).split(","))) for name in ("seeds", "at_epochs")
    }
    plain = {
        name.replace("-", "_"): tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    recipe = CompareRecipe("demo", **plain, **{n: tuple(v) for n, v in lists.items()}, **numbers)
    runs = [(run, Result.load(path_of(folder, run))) for run in prepare(recipe, folder).runs]
    pairs = uwm.read_calibration(DEMO_SET)
    whole = {name: quadruples(pairs.split(name)) for name in ("val", *SETS)}
    for method in dict.fromkeys(run.method for run, _ in runs if run.method != "none"):
        for seed in recipe.seeds:
            choosing, measuring = _halves(seed)
            base = next(found for run, found in runs if run.method == "none" and run.seed == seed)
            points = {
                run.epoch: found
                for run, found in runs
                if (run.method, run.seed) == (method, seed) and not found.stopped
            }
            for budget in BUDGETS:
                terms = parse_max_loss(f"{budget}pt", [*choosing])
                within = {}
                for epoch, found in points.items():
                    now, then = (_as_result(one, "val", whole["val"], choosing) for one in (found, base))
                    verdicts = [term.check(now, then) for term in terms]
                    if all(verdict.met for verdict in verdicts):
                        within[epoch] = now.figures["safety"][0], _loss(verdicts)
                best = max(within, key=lambda epoch: within[epoch][0]) if within else None
                chosen = points[best] if within else base
                sets = {
                    name: _told(*(_as_result(one, name, whole[name], measuring) for one in (chosen, base)), terms)
                    for name in SETS
                }
                told = (
                    {"objective": round(100 * within[best][0], 2), "loss": round(within[best][1], 2)}
                    if within
                    else None
                )
                about = {"method": method, "seed": seed, "budget": budget}
                yield {
                    **about,
                    "settings": {"epoch": best or "best"} if within else None,
                    "cross_validated": told,
                    "sets": sets,
                }


def _as_result(found: Result, name: str, whole: uwm.CalibrationSet, data_sets: Mapping[str, DataSet]) -> EvalResult:
    """A run of the comparison as a result on one set and some pictures of the data sets."""
    from uwm.metrics import with_means

    fields: dict[str, Any] = {"zero_shot": {}, "right": {}, "safe": {}}
    for data_set, data in data_sets.items():
        right = found.right[data_set][list(data.pictures.rows)].double()
        targets = data.pictures.targets
        unsafe = [data.class_names[target] in data.unsafe_classes for target in targets]
        safe = ~uwm.evaluation.torch.tensor(unsafe)
        fields["right"][data_set], fields["safe"][data_set] = right, safe
        fields["zero_shot"][data_set] = {
            "top1": right.mean().item(),
            "top1_safe": right[safe].mean().item(),
            "top1_unsafe": right[~safe].mean().item(),
        }
    return EvalResult(**summary(with_means(found.samples[name]), whole), **fields)


# ---------------------------------------------------------------- the table


def tables(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: means over seeds of every method within every budget, by set; and how often budgets held."""
    methods = [*dict.fromkeys(run["method"] for run in runs)]
    for name in SETS:
        yield f"\n`{name}`: safety (GS, PU), and in brackets the greatest loss in points\n"
        yield "| | " + " | ".join(f"{budget} points" for budget in BUDGETS) + " |"
        yield "|---|" + "---|" * len(BUDGETS)
        for method in methods:
            cells = []
            for budget in BUDGETS:
                own = [run["sets"][name] for run in runs if (run["method"], run["budget"]) == (method, budget)]
                there = sum(
                    run["settings"] is not None for run in runs if (run["method"], run["budget"]) == (method, budget)
                )
                mean = {key: sum(one[key] for one in own) / len(own) for key in ("safety", "GS", "PU", "loss")}
                told = f"{mean['safety']:.1f} ({mean['GS']:.1f}, {mean['PU']:.1f}) [{mean['loss']:.1f}]"
                cells.append(told + ("" if there == len(own) else f" · {there} of {len(own)}") if there else "–")
            yield f"| {method} | " + " | ".join(cells) + " |"
    yield "\nBudgets that were kept in cross-validation, on the test sets: kept, missed within the interval, broken\n"
    yield "| | " + " | ".join(SETS) + " | together |\n|---|" + "---|" * (len(SETS) + 1)
    for method in methods:
        chosen = [run for run in runs if run["method"] == method and run["settings"] is not None]
        counts = {name: [_state(run["sets"][name]["held"]) for run in chosen] for name in SETS}
        every = [state for states in counts.values() for state in states]
        cells = [" · ".join(str(states.count(state)) for state in range(3)) for states in (*counts.values(), every)]
        share = f" ({100 * (1 - every.count(2) / len(every)):.0f} % not broken)" if every else ""
        yield f"| {method} | " + " | ".join(cells) + f"{share} |"


def _state(words: str) -> int:
    return [KEPT, MISSED, BROKEN].index(words)


if __name__ == "__main__":
    main()
