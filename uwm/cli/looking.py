"""Looking without changing anything: eval, calib-check, env."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import BadInput
from .flags import COMMON, GATE, IMAGES, MODEL, ZERO_SHOT, progress_of, say, split_flags, warn
from .group import OPENING, uwm


@uwm.command(name="eval")
@click.argument("model")
@click.option("--pairs", required=True, help="Set to measure on: a folder, or a file of ViSU-Text or NSFWCaps.")
@click.option("--split", help="Its split.")
@IMAGES
@click.option("--baseline", help="Model to compare with.")
@ZERO_SHOT
@click.option("--all-figures", is_flag=True, help="Show R@5, 10, 20 and unsafe top-1 too; --json always has them.")
@click.option("--by-concept", is_flag=True, help="Show figures by concept too; --json always has them.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep embeddings of earlier runs.")
@GATE
@MODEL
@COMMON
def evaluate(model: str, pairs: str, split: str | None, baseline: str | None, no_cache: bool, **flags: Any) -> None:
    """SafeGround, retrieval and zero-shot accuracy; a requirement that is not met sets the exit code."""
    from ..cache import EmbeddingCache
    from ..calibration import read_calibration
    from ..evaluation import concepts_of, differences, quadruples
    from ..evaluation import evaluate as measure
    from ..gate import check_known, check_report_files, demand, github_annotations, parse_requirement, write_reports
    from ..knowledge import open_data_sets
    from ..models import load
    from ..report import as_markdown, as_text, sections, write_evaluation

    settings, show = split_flags(flags)
    required = [parse_requirement(text, baseline is not None) for text in settings["requirements"]]
    inputs = [model, baseline, pairs, settings["data_root"], *settings["zero_shot"]]
    check_report_files((settings["junit"], settings["markdown"], settings["html"]), filter(None, inputs))
    images = {key: settings[key] for key in ("safe_images", "unsafe_images")}
    whole = read_calibration(pairs, split=split, **images).limit(settings["limit"], settings["seed"])
    chosen = quadruples(whole)
    opening = {key: settings[key] for key in ("data_root", "templates", "ensemble")}
    data_sets = open_data_sets(settings["zero_shot"], **opening)
    check_known(required, concepts_of(chosen), [*data_sets])
    _warn_of_odd(whole, data_sets, show)
    passed = {key: settings[key] for key in ("batch_size", "workers", "seed")}
    passed |= {"cache": None if no_cache else EmbeddingCache.default(), "progress": progress_of(show)}
    results = {}
    for column, reference in (("baseline", baseline), ("model", model)):
        if reference is not None:
            loaded = load(reference, **{key: settings[key] for key in OPENING})
            results[column] = measure(loaded, chosen, data_sets=data_sets, **passed)
    changes = {} if baseline is None else differences(results["model"], results["baseline"], settings["seed"])
    verdicts = [r.check(results["model"], results.get("baseline"), settings["seed"]) for r in required]
    shown = {key: settings[key] for key in ("all_figures", "by_concept")}
    tables = sections(chosen.root.name, results, changes, verdicts, **shown)
    as_json = {**{column: result.as_dict() for column, result in results.items()}, "differences": changes}
    say(show, {**as_json, "requirements": [asdict(verdict) for verdict in verdicts]},
        as_text(tables, all_figures=shown["all_figures"], changes=bool(changes)))  # fmt: skip
    for line in github_annotations(verdicts) if settings["annotations"] == "github" else ():
        click.echo(line, err=True)  # GitHub reads both streams; stdout may hold JSON
    title = f"uwm eval {Path(model).name}"
    write_reports(verdicts, title, as_markdown(tables, title), settings["junit"], settings["markdown"])
    if settings["html"] is not None:
        about = settings | {"model": model, "baseline": baseline, "split": split}
        write_evaluation(settings["html"], chosen, results, verdicts, about)
    demand(verdicts)


def _warn_of_odd(pairs: Any, data_sets: dict[str, Any], show: dict[str, bool]) -> None:
    warnings = [*pairs.warnings(), *(note for data in data_sets.values() for note in data.odd)]
    if len(pairs.splits()) > 1:
        warnings.append(f"measuring on all splits ({', '.join(pairs.splits())}); see --split")
    warn(show, warnings)


@uwm.command(name="calib-check")
@click.argument("set_", metavar="SET")
@click.option("--split", help="Only this split.")
@IMAGES
@click.option("--model", help="With it: pairs whose sides it cannot tell apart, and how far the edit depends on them.")
@click.option("--mass", type=float, default=0.02, show_default=True, help="τ of that edit.")
@MODEL
@COMMON
def calib_check(set_: str, split: str | None, model: str | None, mass: float, **flags: Any) -> None:
    """Counts by concept and split, and everything odd in a calibration set."""
    from ..calibration import check, read_calibration
    from ..models import load

    settings, show = split_flags(flags)
    images = {key: settings[key] for key in ("safe_images", "unsafe_images")}
    pairs = read_calibration(set_, split=split, **images).limit(settings["limit"], settings["seed"])
    found = check(pairs)
    odd = {name: items for name, items in found.pop("warnings").items() if items}
    lines = [f"{key}: {value}" for key, value in found.items()]
    lines += [f"warning: {len(items)} {name.replace('_', ' ')}: {'; '.join(items[:5])}" for name, items in odd.items()]
    noise = {}
    if model is not None and "bad_images" not in odd:
        from ..label_noise import describe, report

        passed = {key: settings[key] for key in ("batch_size", "workers", "seed")}
        loaded = load(model, **{key: settings[key] for key in OPENING})
        noise = {"label_noise": report(loaded, pairs, mass=mass, progress=progress_of(show), **passed)}
        lines += describe(noise["label_noise"])
    say(show, {**found, "warnings": odd, **noise}, "\n".join(lines if odd or noise else [*lines, "nothing odd found"]))
    if bad := odd.get("bad_images"):
        raise BadInput(f"{set_}: {len(bad)} bad images; `uwm edit` refuses this set")


@uwm.command()
@COMMON
def env(**flags: Any) -> None:
    """Versions and devices, for a bug report."""
    from ..inspection import environment

    _, show = split_flags(flags)
    found = environment()
    say(show, found, "\n".join(f"{key}: {value}" for key, value in found.items()))
