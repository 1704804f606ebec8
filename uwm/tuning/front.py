"""tune.json: what `uwm tune` found. Its keys, and how a folder of it is read and checked; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from ..checkpoint.json_files import read_json
from ..errors import BadInput, Refused
from ..escaping import clean
from ..expressions import parse_max_loss, parse_objective
from ..schema import (
    COUNT,
    FLAG,
    NONE,
    NUMBER,
    OBJECT,
    TEXT,
    Check,
    Unexpected,
    demand,
    each,
    holds,
    keyed,
    listed,
    mapped,
)

FILE = "tune.json"
KIND = "tune"
FORMAT = 1
UNITS = ("%", "pt")
CHECKED = "cross-validation"  # what tables and plots call the measure that points were chosen by


class Result(TypedDict, total=False):
    """What one edit, or the unedited model, reaches on one set; fractions."""

    pairs: int
    figures: Mapping[str, Sequence[float]]  # figure -> mean, low, high
    zero_shot: Mapping[str, Mapping[str, Any]]  # data set -> ``top1`` and the like
    by_concept: Mapping[str, Mapping[str, Sequence[float]]]
    changes: Mapping[str, Mapping[str, Any]]  # against the unedited model, as `uwm.evaluation.differences` gives them


class Tried(TypedDict):
    """One valid trial."""

    trial: int
    method: str
    settings: Mapping[str, Any]
    objective: float  # percent
    loss: float  # in the unit of `Loss`
    front: bool  # whether it is a point of the front


class Point(TypedDict):
    """A point of the front: no other trial is at least as good in both ways."""

    number: int  # from 1, by loss
    trial: int
    method: str
    settings: Mapping[str, Any]
    patch: str  # its file in the folder
    objective: float  # percent, in cross-validation
    loss: float  # likewise, in the unit of `Loss`
    cross_validated: Result
    held_out: Mapping[str, Result]


class Objective(TypedDict):
    """What the search raises, or lowers."""

    text: str  # as `uwm.expressions.parse_objective` reads it
    label: str
    lower_is_better: bool


class Loss(TypedDict):
    """What the search keeps low: the greatest fall of any term against the unedited model."""

    terms: Sequence[str]
    unit: str  # ``%`` of the unedited model's value, or ``pt``


class Baseline(TypedDict):
    """The unedited model."""

    cross_validated: Result
    held_out: Mapping[str, Result]


class Trials(TypedDict):
    """How many trials there were and how long they took."""

    asked: int
    done: int
    invalid: int
    stopped: int
    seconds: float
    per_minute: float
    by_method: Mapping[str, Mapping[str, float]]  # method -> ``trials``, ``seconds``


class _Dated(TypedDict, total=False):
    run: Mapping[str, str]  # ``date``; the first uwm wrote none


class Front(_Dated):
    """The content of tune.json."""

    format: int
    kind: str
    versions: Mapping[str, Any]
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    calibration: Mapping[str, Any]
    objective: Objective
    loss: Loss
    trials: Trials
    baseline: Baseline
    points: Sequence[Point]
    knee: int  # a point's number
    tried: Sequence[Tried]
    notes: Sequence[str]


def is_front(folder: Path) -> bool:
    """Whether a folder is one that `uwm tune` wrote."""
    return (folder / FILE).is_file()


def read_front(folder: Path) -> Front:
    """Read and check the front in a folder; control characters in its texts are replaced.

    Raises:
        BadInput: No folder of `uwm tune`, damaged, or of another format.
        Refused: A patch lies outside of the folder.
    """
    path = folder / FILE
    if not is_front(folder):
        raise BadInput(f"{folder}: no {FILE} in it, so it is no folder that uwm tune wrote")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise BadInput(f"{path}: holds no result of uwm tune (expected kind {KIND!r})")
    if content.get("format") != FORMAT:
        raise BadInput(f"{path}: format {content.get('format')!r}, this uwm reads {FORMAT}; update uwm")
    try:
        content = _cleaned(content)
    except RecursionError:
        raise BadInput(f"{path}: nested too deep") from None
    demand(path, each(FRONT, _consistent), content, "run uwm tune again")
    for point in content["points"]:
        _inside(folder, point)
    return cast(Front, content)


def patch_path(folder: Path, point: Point) -> Path:
    """The file of a point's patch.

    Raises:
        BadInput: It is not there.
        Refused: It lies outside of the folder.
    """
    path = _inside(folder, point)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; it is the patch of point {point['number']}, so run uwm tune again")
    return path


def _inside(folder: Path, point: Point) -> Path:
    """Links are followed first, so that none of them leads out."""
    path = folder / point["patch"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Refused(f"{folder / FILE}: the patch of point {point['number']} lies outside of the folder: {path}")
    return path


def _cleaned(value: Any) -> Any:
    """A JSON value whose texts can be shown: they are other people's."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return {clean(key): _cleaned(item) for key, item in value.items()} if isinstance(value, dict) else value


INTERVAL = listed(NUMBER, 3)
FIGURES = mapped(INTERVAL)
ACCURACY = keyed(
    {"top1": NUMBER}, {"top1_safe": NUMBER, "top1_unsafe": NUMBER, "top1_interval": listed(NUMBER, 2)}
)  # fmt: skip
RESULT = keyed(
    {"pairs": COUNT, "figures": FIGURES, "zero_shot": mapped(ACCURACY), "by_concept": mapped(FIGURES)},
    {"changes": mapped(keyed({"difference": INTERVAL}))},
)
MEASURED: dict[str, Check] = {"cross_validated": RESULT, "held_out": mapped(RESULT)}
TRIAL: dict[str, Check] = {"trial": COUNT, "method": TEXT, "settings": OBJECT, "objective": NUMBER, "loss": NUMBER}
FRONT = keyed(
    {
        "versions": OBJECT,
        "settings": OBJECT,
        "model": keyed({"name": TEXT}, {"sha256": mapped(TEXT)}),
        "calibration": keyed({"name": TEXT, "pairs": COUNT, "folds": COUNT}, {"sha256": TEXT}),
        "objective": keyed({"text": TEXT, "label": TEXT, "lower_is_better": FLAG}),
        "loss": keyed({"terms": listed(TEXT), "unit": holds(" or ".join(UNITS), lambda value: value in UNITS)}),
        "trials": keyed(
            {"asked": COUNT, "done": COUNT, "invalid": COUNT, "stopped": COUNT, "seconds": NUMBER, "per_minute": NUMBER}
            | {"by_method": mapped(keyed({"trials": COUNT, "seconds": NUMBER}, {}, NONE))}
        ),
        "baseline": keyed(MEASURED),
        "points": listed(keyed({"number": COUNT, "patch": TEXT, **TRIAL, **MEASURED}), least=1),
        "knee": COUNT,
        "tried": listed(keyed({**TRIAL, "front": FLAG})),
        "notes": listed(TEXT),
    },
    {"run": keyed({}, {"date": TEXT})},
)


def _consistent(front: Mapping[str, Any], place: str) -> None:
    """Numbers count from 1, the knee is one of them, and every point has the baseline's sets. Raises Unexpected."""
    numbers = [point["number"] for point in front["points"]]
    if numbers != [*range(1, len(numbers) + 1)]:
        raise Unexpected("points", "the numbers 1, 2, 3, …", numbers)
    if front["knee"] not in numbers:
        raise Unexpected("knee", "a point's number", front["knee"])
    try:
        parse_objective(front["objective"]["text"])
        for term in front["loss"]["terms"]:
            parse_max_loss(f"{term}=0{front['loss']['unit']}")
    except BadInput as error:
        raise Unexpected("objective and loss", f"figures ({error})", front["objective"]["text"]) from None
    sets = [*front["baseline"]["held_out"]]
    for number, point in enumerate(front["points"]):
        if [*point["held_out"]] != sets:
            raise Unexpected(f"points[{number}].held_out", f"the sets {sets}", [*point["held_out"]])
