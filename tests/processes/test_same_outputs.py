"""Whatever the number of processes, each verb writes the same bytes and tells the same, once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import write_tiny_set
from PIL import Image
from processes.launching import HERE, launch

from uwm.editing.stability import FIRST

STABLE = ("uwm", "ablate")
CLOSED_FORMS = ("repel", "redirect", "ablate", "null-space")
TIMED = {"seconds", "per_minute", "run", "costs", "peak_memory_mb", "peak_device_mb"}
TIMED_FILES = {"comparison.csv", "comparison.md", "comparison.tex", "study.journal", "tune.md"}
TIMED_PAGES = {"tuned", "compared"}  # their folders
DATED = '<p id="made">'  # the line of a page that says when it was made


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A zero-shot folder of 11 pictures in three classes."""
    folder = tmp_path_factory.mktemp("classes") / "zs"
    for number in range(11):
        place = folder / f"{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 * number, 250 - 20 * number, number * 7)).save(place / f"{number}.png")
    (folder / "classnames.txt").write_text("dog\ncat\nknife\n")
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A set of enough pairs for two looks of `--until-stable`, and two of them left."""
    return write_tiny_set(tmp_path_factory.mktemp("sets") / "many", 2 * FIRST + 8, 2 * FIRST + 2)


def quick_jobs(model, calib, classes, many, out):
    small = ["--calib", calib, "--batch-size", "3"]
    more = ["--show-examples", "--also-export", "open_clip"]
    jobs = [["edit", model, *small, "--zero-shot", classes, "--beside", "none", *more, "-o", out / "uwm"]]
    kept = ["--method", "repel", "--beside", "redirect,null-space", "--preserve", classes]  # its images and names
    jobs += [["edit", model, *small, *kept, "-o", out / "kept"]]
    until = ["--calib", many, "--eval-split", "test", "--beside", "none", "--until-stable", "0.01"]
    jobs += [["edit", model, *until, "--batch-size", "7", "--method", m, "-o", out / f"stable-{m}"] for m in STABLE]
    jobs += [["edit", model, *small, "--for", "diffusion", "-o", out / "diffusion"]]
    jobs += [["edit", model, *small, "--beside", "none", "--method", m, "-o", out / m] for m in CLOSED_FORMS]
    jobs += [["score", model, *small, "--method", "grad-unsafe", "-o", out / "scores.safetensors"]]
    look = ["eval", model, "--pairs", calib, "--baseline", out / "uwm", "--zero-shot", classes, "--batch-size", "5"]
    look += ["--require", "GS>=0", "--junit", out / "eval.xml", "--markdown", out / "eval.md"]
    jobs += [[*look, "--json", "--html", out / "eval.html"]] * 2  # the second time from the cache
    train = ["--epochs", "2", "--train-batch", "8", "--micro-batch", "3"]
    return [*jobs, ["finetune", model, "--method", "safe-clip", *small, *train, "-o", out / "trained"]]


def slow_jobs(model, calib, classes, many, out):
    small = ["--calib", calib, "--batch-size", "3", "--zero-shot", classes]
    chosen = ["--max-loss", "90%", "--preserve", classes, "--trials", "8", "--beside", "none", "-o", out / "chosen"]
    searches = [["tune", model, *small, "--trials", trials, "-o", out / "tuned"] for trials in ("8", "12")]
    methods = ("uwm,repel,safe-clip:epochs=1", "uwm,repel,random,safe-clip:epochs=1,safe-clip:epochs=1+uwm")
    shared = ["compare", model, *small, "--validation", "0.2", "-o", out / "compared"]
    return [["edit", model, *small, *chosen], *searches, *([*shared, "--methods", named] for named in methods)]


def run(count, jobs, folder):
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps([[str(part) for part in job] for job in jobs]))
    with launch(count, HERE / "jobs.py", folder / "jobs.json", folder=folder) as process:
        told, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return told, errors


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(kept) for key, kept in value.items() if key not in TIMED}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def content(path: Path):
    """The file's bytes, without what tells how long things took."""
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".html" and path.parent.name not in TIMED_PAGES:
        return [line for line in path.read_text().splitlines() if not line.startswith(DATED)]
    timed = path.name in TIMED_FILES or path.suffix == ".html" or path.parent.name == "results"
    return None if timed else path.read_bytes()


def written(out: Path):
    return {str(path.relative_to(out)): content(path) for path in sorted(out.rglob("*")) if path.is_file()}


def told_apart_from_times(told: str, out: Path) -> list[str]:
    whole = re.sub(r"\n {9}", " ", told.replace(str(out), "OUT"))  # a line with its label in one row
    return [line for line in whole.splitlines() if not re.search(r"^DONE |^\d+ tri|\d+ s\b|MB", line)]


@pytest.mark.parametrize(
    ("count", "jobs_of"),
    [
        (2, quick_jobs),
        pytest.param(4, quick_jobs, marks=pytest.mark.slow),
        pytest.param(2, slow_jobs, marks=pytest.mark.slow),
        pytest.param(4, slow_jobs, marks=pytest.mark.slow),
    ],
)
def test_several_processes_write_and_tell_what_one_does(count, jobs_of, tiny_hf, tiny_set, classes, many, tmp_path):
    found = {}
    for processes in (1, count):
        folder = tmp_path / str(processes)
        told, errors = run(processes, jobs_of(tiny_hf, tiny_set, classes, many, folder / "out"), folder)
        found[processes] = (
            written(folder / "out"),
            told_apart_from_times(told, folder / "out"),
            errors.count("uwm: warn"),
        )
    files, told, warnings = found[1]
    assert files.keys() == found[count][0].keys()
    assert [name for name in files if files[name] != found[count][0][name]] == []
    assert warnings == found[count][2]
    if jobs_of is quick_jobs:
        assert told == found[count][1]
        assert {f"{method}/uwm_patch.safetensors" for method in ("uwm", *CLOSED_FORMS)} <= files.keys()
        for method in STABLE:
            assert [look["pairs"] for look in files[f"stable-{method}/uwm.json"]["stable"]["curve"]] == [64, 128]
