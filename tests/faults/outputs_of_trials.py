"""The verbs of the kill matrix: how each is called, and what it leaves, without what may differ between runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uwm import records
from uwm.outputs import TEMPORARY

Bytes = dict[str, bytes]
TIMES = {
    "date",
    "seconds",
    "per_minute",
    "peak_memory_mb",
    "peak_device_mb",
    "costs",
    "trained",
    "resumed_from",
    "went_on",
}
TABLES = {
    "comparison.csv",
    "comparison.md",
    "comparison.tex",
    "tune.md",
}  # with times; and the pages of a search and a comparison
MADE = re.compile(rb'<p id="made">.*')  # the date of a page
JOURNAL = "study.journal"
NUMBER = re.compile(rb"[-\d., \xc2\xb1\xe2\x80\x93\x88\x92]+")  # with its sign, its interval and its column's width


@dataclass(frozen=True)
class Verb:
    """A verb of the program.

    Attributes:
        name: Of it.
        words: Inputs, output, whether it is the earlier output -> its arguments.
        resumes: Whether its output is a folder that is filled and gone on with.
        kept: What it leaves beside its output to go on from.
        last: Of such a folder, the file without which it is no finished output.
        takes, gives: The flags for pairs and output.
    """

    name: str
    words: Callable[[Path, bool], list]
    resumes: bool = False
    kept: tuple[str, ...] = ()
    last: str | None = None
    takes: str = "--calib"
    gives: str = "-o"

    def arguments(self, inputs: Path, out: Path, earlier: bool = False) -> list:
        """What follows the program's name."""
        inputs_of = [inputs / "model", self.takes, inputs / "set"]
        return [self.name, *inputs_of, *self.words(inputs, earlier), self.gives, out]

    def check_parts(self, out: Path, old: Bytes | None, whole: Bytes) -> None:
        """Every file of a folder that is filled is that of the earlier output or of an undisturbed run, or is whole."""
        for name, data in (result_of(out) if out.is_dir() else {}).items():
            known = [old or {}, whole]
            right = any(data == one.get(name) for one in known)
            assert right or is_unfinished(name), f"half a file: {name}"
        lost = [name for name in old or {} if not (out / name).is_file()]
        changing = self.last is not None and not (out / self.last).is_file()  # killed between the renames
        assert not lost or changing, f"of the earlier output, {lost} is gone"

    def difference(self, out: Path, whole: Bytes) -> list[str]:
        """The names of files that are not as an undisturbed run leaves them."""
        found = result_of(out)
        return sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))


SETS = ("--eval-split", "test")
VERBS = {
    verb.name: verb
    for verb in (
        Verb("edit", lambda inputs, earlier: [*SETS, "--mass", 0.3 if earlier else 0.1]),
        Verb("score", lambda inputs, earlier: ["--limit", 4] if earlier else []),
        Verb(
            "finetune",
            lambda inputs, earlier: [
                *SETS,
                "--method",
                "safe-clip",
                "--epochs",
                1 if earlier else 2,
                "--train-batch",
                8,
            ],
            kept=("out.training.safetensors",),
        ),
        Verb(
            "compare",
            lambda inputs, earlier: [*SETS, "--methods", "random" if earlier else "uwm,random"],
            resumes=True,
        ),
        Verb(
            "tune",
            lambda inputs, earlier: [*SETS, "--methods", "hidden-units", "--trials", 2 if earlier else 4],
            resumes=True,
            last="tune.json",
        ),
    )
}

KEEPING = {  # that keep their work while they last; each has many batches
    verb.name: verb
    for verb in (
        Verb(
            "edit",
            lambda inputs, earlier: (
                [*SETS, "--batch-size", 2, "--zero-shot", inputs / "classes"] + (["--mass", 0.3] if earlier else [])
            ),
        ),
        Verb("score", lambda inputs, earlier: ["--batch-size", 2, *(["--limit", 4] if earlier else [])]),
        Verb(
            "eval",
            lambda inputs, earlier: ["--batch-size", 2, *(["--limit", 8] if earlier else [])],
            takes="--pairs",
            gives="--html",
        ),
    )
}


def bytes_of(place: Path) -> Bytes:
    """Every file below a folder, or the file itself, by its path there."""
    if place.is_file():
        return {"": place.read_bytes()}
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def result_of(out: Path) -> Bytes:
    """The same of an output without times and other costs, lock files, and the journal, which every start adds to."""
    found = bytes_of(out).items()
    return {
        name: data if is_unfinished(name) else untimed(out / name if name else out, data)
        for name, data in found
        if not name.endswith(".lock") and name != JOURNAL
    }


def is_unfinished(name: str) -> bool:
    """Whether a file in an output is temporary, or lies in a temporary folder."""
    return any(TEMPORARY.fullmatch(part) for part in Path(name).parts)


def untimed(path: Path, data: bytes) -> bytes:
    """A file's content without what another run would take otherwise."""
    if path.suffix == ".json":
        return json.dumps(_without(json.loads(data))).encode()
    if path.name == "report.html" or data[:15].lower() == b"<!doctype html>":
        data = MADE.sub(b"", data)
    timed = any((path.parent / name).is_file() for name in ("front.svg", "comparison.json"))
    if path.name in TABLES or (path.name == "report.html" and timed):
        return NUMBER.sub(b"0", data)
    if path.parent.name == "results" and path.suffix == ".safetensors":
        tensors, about = records.read(path, "comparison result")
        values = {name: tensor.tolist() for name, tensor in tensors.items()}
        return json.dumps([values, _without(about)]).encode()
    return data


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key not in TIMES}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


def strays(place: Path) -> list[str]:
    """What lies beside the output ``out``, and hidden files within it."""
    beside = [path.name for path in place.iterdir() if path.name != "out"]
    return beside + [path.name for path in place.rglob(".uwm*") if path.parent != place]
