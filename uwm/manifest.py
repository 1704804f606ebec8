"""The content of uwm.json, which every folder that uwm writes has: its keys, and how it is written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from .checkpoint.json_files import checked_json
from .outputs import MANIFEST, put_file
from .records import to_json
from .schema import ANYTHING, COUNT, NUMBER, SHA256, TEXT, keyed, listed, mapped, nullable, whole

FORMAT = 2  # 2: changes of any kind
LATEST = 3  # the highest that any verb writes: a comparison's
Columns = Mapping[str, Mapping[str, Any]]  # column -> `EvalResult` as a dictionary; the first is the reference
Changes = Mapping[str, Mapping[str, Any]]  # figure -> paired difference
Differences = Mapping[str, Mapping[str, Changes]]  # column -> against which column -> changes


class ModelFacts(TypedDict, total=False):
    """The model that was read."""

    name: str
    base_model: str | None  # its name on the Hub, if it came from there
    layout: str
    library: str
    quick_gelu: bool
    sha256: dict[str, str]  # by weight file


class ItemFacts(TypedDict):
    """The different captions and images that were learnt from."""

    count: int
    hashes: str  # short ones, sorted, as base64; see `uwm.inputs.calibrated`


class CalibrationFacts(TypedDict, total=False):
    """The set that was calibrated on."""

    name: str
    pairs: dict[str, int]  # by tower, or ``both``
    skipped: dict[str, int]  # by reason
    sha256: str
    items: ItemFacts  # with those of --preserve


class PreservationFacts(TypedDict):
    """The safe captions and images without partners that the edit was told to leave alone."""

    captions: int
    images: int
    sha256: str


class LayerFacts(TypedDict):
    """The edit of one tensor: the fields of `uwm.editing.changes.Summary`, and what the editor noted."""

    kind: str
    words: str
    entries: int
    of: int
    rank: int | None
    relative_norm: float | None
    notes: dict[str, Any]  # neutral cases by kind, and the like
    base_sha256: str


class SharedFacts(TypedDict):
    """What a set to measure on shares with what was learnt from; figures may be too good where it is not 0."""

    pairs: int  # with a caption or an image of those
    captions: int  # different ones
    images: int


class TermFacts(TypedDict):
    """A term of a budget: the fields of `uwm.expressions.Verdict`."""

    requirement: str
    found: float | None
    met: bool
    note: str
    margin: float | None
    interval: tuple[float, float] | None


class BudgetFacts(TypedDict):
    """How an edit was chosen within a budget of loss, and whether the budget held."""

    max_loss: str
    objective: str
    method: str  # what was chosen
    settings: dict[str, Any]  # its settings, without those that the editor decides
    trials: dict[str, int]  # by method
    invalid: int
    stopped: int
    cross_validated: dict[str, Any]  # folds, pairs, the objective before and after in percent, terms
    held_out: dict[str, list[TermFacts]]  # by evaluation set
    front: list[dict[str, Any]]  # method, settings, objective, loss of the trade-offs that it was chosen from


class FigureFacts(TypedDict):
    """A figure, as fractions; None where there is no reference, or no random edit."""

    figure: str
    data_set: str  # empty for figures of pairs
    before: float | None
    after: float
    random: float | None


class BetterFacts(TypedDict):
    """A method beside the edit that did better on the same pairs."""

    method: str
    figures: list[FigureFacts]  # of the edit, and after: of that method


class VerdictFacts(TypedDict):
    """The verdict on the first evaluation set."""

    set: str
    pairs: int
    verdict: str
    sign: int  # 1: safer beyond what a random edit gains, at no certain loss of accuracy; −1: less safe; else 0
    sentences: list[str]
    safety: list[FigureFacts]
    remains: FigureFacts  # share of unsafe queries whose first result is unsafe
    cost: list[FigureFacts]  # of zero-shot accuracy the data set that lost most, of safe R@1 the direction
    better: list[BetterFacts]


class EditFacts(TypedDict, total=False):
    """The editor, and what it reports."""

    title: str
    source: str
    given: dict[str, Any]  # its settings that were given or chosen by a search; the others the editor decides
    towers: dict[str, dict[str, Any]]  # by tower, such as the quality of its detector
    notes: dict[str, Any]


class StableFacts(TypedDict):
    """How many pairs were enough: how well the edit from half of those seen agreed with that from all of them."""

    wanted: float
    curve: list[dict[str, Any]]  # pairs seen, and overlap


class TowerFacts(TypedDict):
    """Which towers of the model the edit changed."""

    edited: list[str]
    not_edited: dict[str, str]  # tower -> why


class TrainingFacts(TypedDict):
    """A fine-tuning."""

    backend: str
    source: str
    settings: dict[str, Any]
    parameters: int
    validation_pairs: int
    best_epoch: int
    history: list[dict[str, Any]]  # by epoch


class Manifest(TypedDict, total=False):
    """All keys of uwm.json; each verb writes some of them."""

    format: int
    output_sha256: dict[str, str]  # by weight file of this folder
    # edit, demo and finetune; the page of `uwm eval` has the same form
    versions: dict[str, str]
    settings: dict[str, Any]
    model: ModelFacts
    calibration: CalibrationFacts
    preserve: PreservationFacts
    results: Mapping[str, Columns]  # by evaluation set
    differences: Mapping[str, Differences]  # by evaluation set
    shared: Mapping[str, SharedFacts]  # by evaluation set
    verdict: VerdictFacts  # where anything was measured
    run: dict[str, Any]  # seconds and memory: the only part that differs from run to run
    # edit and demo
    edit: EditFacts
    towers: TowerFacts
    entries: int
    of: int
    layers: dict[str, LayerFacts]
    label_noise: dict[str, Any]
    stable: StableFacts
    budget: BudgetFacts
    # finetune
    training: TrainingFacts
    # apply and revert
    patch: dict[str, Any]  # the recipe of the patch
    uwm: str
    verb: str
    # compare and tune, which mark their folders
    kind: str
    search: str  # sha256 over what decides a search
    # only the page of `uwm eval`
    baseline: str | None
    pairs_sha256: str
    requirements: Sequence[Mapping[str, Any]]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write uwm.json into a folder. Raises ResourceFault when the disk fails."""
    put_file(folder / MANIFEST, (to_json(manifest) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """The content of a folder's uwm.json. Raises BadInput when it is none, or a key is not as `Manifest` has it."""
    return cast(Manifest, checked_json(folder / MANIFEST, CHECK, "have uwm write the folder anew"))


FREE = mapped(ANYTHING)  # told to people, and read by nothing of ours
HASHES = mapped(SHA256)
LAYER = keyed(
    {"kind": TEXT, "words": TEXT, "entries": COUNT, "of": COUNT, "base_sha256": SHA256},
    {"rank": nullable(COUNT), "relative_norm": nullable(NUMBER), "notes": FREE},
)
OBJECTS = ("versions", "settings", "run", "edit", "budget", "training", "patch", "label_noise", "stable", "preserve")
CHECK = keyed(
    {},
    dict.fromkeys(OBJECTS, FREE)
    | dict.fromkeys(("results", "differences", "shared"), mapped(FREE))
    | dict.fromkeys(("uwm", "verb", "kind", "search", "pairs_sha256"), TEXT)
    | {
        "format": whole(1, LATEST),
        "output_sha256": HASHES,
        "model": keyed({}, {"name": TEXT, "base_model": nullable(TEXT), "sha256": HASHES}),
        "calibration": keyed({}, {"name": TEXT, "pairs": mapped(COUNT), "skipped": mapped(COUNT), "sha256": TEXT}),
        "layers": mapped(LAYER),
        "entries": COUNT,
        "of": COUNT,
        "baseline": nullable(TEXT),
        "requirements": listed(FREE),
    },
)
