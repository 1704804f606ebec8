"""One valid record of every kind that is read from disk, and what reads it: what a fuzzer starts from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fuzz.mutations import NAMES, mutated_bytes, mutated_json, mutated_tensors, record_bytes
from fuzz.targets import Target
from made_up_front import made_up_front
from random_patches import EVERY_SLOT, patch_of, scores_of
from tiny_files import hf_folder

import uwm
from uwm import records
from uwm.backends.state import State, load_state, save_state
from uwm.cache import EmbeddingCache
from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.json_files import checked_json
from uwm.clock import Cost
from uwm.comparison.bench import KEPT
from uwm.comparison.figures import rows
from uwm.comparison.plan import Run
from uwm.comparison.results import Result, Wanted, figure_names
from uwm.editing.editors import find_editor
from uwm.editing.entries.scores import Scores
from uwm.editing.files import fit
from uwm.editing.patch import Patch
from uwm.editing.settings import Range
from uwm.errors import BadInput, InvalidResult, Refused
from uwm.expressions import parse_objective
from uwm.inspection import inspect
from uwm.manifest import Manifest, read_manifest, write_manifest
from uwm.records import to_json
from uwm.tuning.criteria import Criteria
from uwm.tuning.front import read_front
from uwm.tuning.journal import OURS
from uwm.tuning.page import front_page
from uwm.tuning.search import Search
from uwm.tuning.space import Space
from uwm.tuning.table import csv_table, markdown
from uwm.unfinished import Entry, Unfinished

TYPES_BY_NAME = {name: dtype for dtype, name in NAMES.items()}
KEY = "ab" * 32
TRAINED = {"layer.lora_A.default.weight": torch.ones(2, 4), "layer.lora_B.default.weight": torch.ones(3, 2)}


@dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        name: Of the kind.
        path: The valid file.
        read: Reads the file and uses it; what it returns stands for what was read.
        mutate: The file's bytes and a source of draws -> other bytes.
    """

    name: str
    path: Path
    read: Callable[[Path], Any]
    mutate: Callable[[bytes, random.Random], bytes]


def kinds(root: Path) -> list[Kind]:
    """Every kind, with valid files under a folder."""
    source = hf_folder(root / "model")
    made = [_patch(root, source), _first_patch(root), _scores(root, source), _state(root), _result(root)]
    return [*made, _kept(root), _manifest(root), _front(root), _journal(root), _cache(root), _work(root)]


# ---------------------------------------------------------------- how files are changed


def mutate_record(data: bytes, rng: random.Random) -> bytes:
    """Tensors, description or bytes of a safetensors file."""
    if rng.random() < 0.1:
        return mutated_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors, about = _split(header, data[8 + length :])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if rng.random() < 0.4 and tensors:
            tensors = mutated_tensors(tensors, rng)
        else:
            about = mutated_json(about, rng)
    return record_bytes(tensors, {records.KEY: json.dumps(about)})


def _split(header: dict[str, Any], body: bytes) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors and description of a valid record."""
    about = json.loads(header.pop("__metadata__")[records.KEY])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = torch.empty(entry["shape"], dtype=TYPES_BY_NAME[entry["dtype"]])
        if end > begin:
            raw = torch.frombuffer(bytearray(body[begin:end]), dtype=torch.uint8)
            values = raw.view(values.dtype).reshape(values.shape)
        tensors[name] = values
    return tensors, about


def mutate_document(data: bytes, rng: random.Random) -> bytes:
    """A JSON file."""
    if rng.random() < 0.1:
        return mutated_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = mutated_json(value, rng) if isinstance(value, dict | list) else value
    return json.dumps(value).encode()


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """A file of JSON lines."""
    lines = data.splitlines(keepends=True)
    place, what = rng.randrange(len(lines)), rng.random()
    if what < 0.15:
        del lines[place]
    elif what < 0.3:
        lines.insert(rng.randrange(len(lines)), lines[place])
    elif what < 0.4:
        lines[place] = mutated_bytes(lines[place], rng)
    else:
        lines[place] = mutate_document(lines[place], rng) + b"\n"
    return b"".join(lines)


# ---------------------------------------------------------------- the kinds


def _patch(root: Path, source: Path) -> Kind:
    patch = patch_of(source, EVERY_SLOT, alpha=0.5)
    fit(open_checkpoint(source), patch)[0].save(root / "patch")
    return Kind("patch", root / "patch", lambda path: _used_patch(path, source), mutate_record)


def _first_patch(root: Path) -> Kind:
    data = (Path(__file__).parents[1] / "golden" / "format1" / "halved.safetensors").read_bytes()
    (root / "first").write_bytes(data)
    return Kind("patch of format 1", root / "first", _used_patch, mutate_record)


def _used_patch(path: Path, source: Path | None = None) -> bytes:
    """Read, described, and held against a checkpoint, which it may not fit."""
    patch = Patch.load(path)
    inspect(path)
    json.dumps(patch.recipe, allow_nan=False)
    if source is not None:
        fit(open_checkpoint(source), patch)
    return patch.content()


def _scores(root: Path, source: Path) -> Kind:
    scores_of(source, EVERY_SLOT).save(root / "scores")

    def read(path: Path) -> bytes:
        scores = Scores.load(path)
        inspect(path)
        uwm.select(scores)
        return scores.content()

    return Kind("scores", root / "scores", read, mutate_record)


def _state(root: Path) -> Kind:
    entry = {"epoch": 1, "pairs": 8, "loss": 1.5, "terms": {"a": 1.0}, "validation": 0.5, "seconds": 0.1}
    adam = {f"{what}/{name}": t.clone() for name, t in TRAINED.items() for what in ("mean", "square")}
    adam |= {f"step/{name}": torch.tensor(4.0) for name in TRAINED}
    groups = {"adapter": TRAINED, "adam": adam, "best": TRAINED, "snapshots": {1: TRAINED}}
    sums = {"pairs": 4.0, "loss": 2.0, "a": 2.0}
    state = State(step=4, sums=sums, history=[entry], best_epoch=1, best_value=0.5, **groups)
    save_state(root / "state", KEY, state)

    def read(path: Path) -> bytes:
        found = load_state(path, KEY, TRAINED)
        save_state(path, KEY, found)
        return path.read_bytes()

    return Kind("training state", root / "state", read, mutate_record)


def _result(root: Path) -> Kind:
    samples = {name: torch.arange(6) % 2 == 0 for name in figure_names()}
    right = {"things": torch.tensor([True, False, True])}
    costs = {"evaluate": Cost(1.0, 10), "edit": Cost(2.0, 20)}
    Result({"test": samples}, right, costs, 5, None, ("a note",)).save(root / "result", KEY)
    wanted = Wanted(KEY, {"test": 6}, {"things": 3})

    def read(path: Path) -> bytes:
        found = Result.load(path, wanted)
        rows({Run("none", None, 0, (), None, key=KEY): found}, {}, 0)
        found.save(path, KEY)
        return path.read_bytes()

    return Kind("comparison result", root / "result", read, mutate_record)


def _kept(root: Path) -> Kind:
    path = root / "costs.json"
    path.write_text(
        json.dumps({"costs": {"edit": {"seconds": 1.0, "peak_memory_mb": 3, "peak_device_mb": None}}, "trained": 4})
    )

    def read(path: Path) -> bytes:
        known = checked_json(path, KEPT, "remove it")
        return json.dumps([{n: vars(Cost(**c)) for n, c in known["costs"].items()}, known["trained"]]).encode()

    return Kind("costs of a comparison", path, read, mutate_document)


def _manifest(root: Path) -> Kind:
    folder = root / "edited"
    folder.mkdir()
    facts = {"name": "tiny", "base_model": None, "layout": "hf", "quick_gelu": True, "sha256": {"m": KEY}}
    layer = {"kind": "scale", "words": "negated", "entries": 1, "of": 2, "rank": None, "notes": {}, "base_sha256": KEY}
    known = {"format": 2, "search": KEY, "kind": "tune", "model": facts, "layers": {"vision.0.fc2": layer}}
    write_manifest(folder, Manifest(output_sha256={"m.safetensors": KEY}, **known))

    def read(path: Path) -> bytes:
        found = read_manifest(path.parent)
        assert isinstance(found.get("search", ""), str)
        assert all(isinstance(v, str) for v in found.get("output_sha256", {}).values())
        return json.dumps(found).encode()

    return Kind("uwm.json", folder / "uwm.json", read, mutate_document)


def _front(root: Path) -> Kind:
    folder = root / "tuned"
    folder.mkdir()
    (folder / "tune.json").write_text(to_json(made_up_front(8)))

    def read(path: Path) -> bytes:
        front = read_front(path.parent)
        front_page(front)
        csv_table(front)
        return markdown(front).encode()

    return Kind("tune.json", folder / "tune.json", read, mutate_document)


def _search(journal: Path) -> Search:
    spaces = {
        name: Space(find_editor(name), {}, {"mass": Range(0.01, 0.5, start=0.02)}) for name in ("uwm", "log-ratio")
    }
    criteria = Criteria(parse_objective("safety"), (), True)
    return Search(None, None, None, spaces, criteria, seed=0, journal=journal)  # type: ignore[arg-type]


def _journal(root: Path) -> Kind:
    path = root / "study.journal"
    search = _search(path)
    for number, study in enumerate(search._studies.values()):
        trial = study.ask()
        trial.suggest_float("mass", 0.01, 0.5)
        about = {"number": number, "quick": True, "loss": -0.5, "stopped": False, "seconds": 0.1}
        trial.set_user_attr(OURS, about)
        trial.set_constraint("loss", -0.5)
        study.tell(trial, [50.0])
        study.enqueue_trial({"mass": 0.02})

    def read(path: Path) -> bytes:
        found = _search(path)
        found._next_method()
        return json.dumps([found.done, *(repr(one) for one in found._tried)]).encode()

    return Kind("study.journal", path, read, mutate_lines)


def _cache(root: Path) -> Kind:
    cache = EmbeddingCache(root / "cache")
    put = {side: torch.ones(3, 2) for side in ("safe_text", "unsafe_text", "safe_image", "unsafe_image")}
    cache.put(KEY, put)
    path = root / "cache" / f"{KEY}.safetensors"
    whole = path.read_bytes()

    def read(path: Path) -> bytes:
        found = cache.get(KEY)
        assert found is None or all(
            torch.equal(t, torch.ones(3, 2)) and t.dtype == torch.float32 for t in found.values()
        )
        assert found is None or len(found) == 4
        return whole

    return Kind("cached embeddings", path, read, mutate_record)


def _work(root: Path) -> Kind:
    def store() -> Unfinished:
        return Unfinished(root / "unfinished", KEY, every=0.0)

    sums, about = {"0": torch.arange(6.0).reshape(2, 3), "1": torch.ones(2, 8, dtype=torch.uint8)}, {"done": 3}
    store().put(KEY, Entry(sums, {**about, "sums": [{"tensor": ["0", False]}, {"digests": {"tensor": ["1", False]}}]}))
    path = root / "unfinished" / KEY / f"{KEY}.safetensors"
    whole = path.read_bytes()

    def read(path: Path) -> bytes:
        found = store().get(KEY)
        assert found is None or (found.about["done"] == 3 and len(found.about["sums"]) == 2)
        assert found is None or all(torch.equal(found.tensors[name], tensor) for name, tensor in sums.items())
        return whole

    return Kind("unfinished work", path, read, mutate_record)


# ---------------------------------------------------------------- one trial

ALLOWED = (BadInput, InvalidResult, Refused)  # the last two: scores of which nothing is chosen, a path that leaves


def check(kind: Kind, data: bytes) -> bool:
    """Read what may be no record any more: it is refused, or reads the same every time; whether it was read.

    Args:
        kind: Of the record.
        data: A changed one.
    """
    kind.path.write_bytes(data)
    try:
        first = kind.read(kind.path)
    except ALLOWED as error:
        assert str(error).isprintable(), error
        return False
    if kind.mutate is mutate_record:
        kind.path.write_bytes(first)
    assert kind.read(kind.path) == first
    return True


def targets(root: Path) -> list[Target]:
    """Every kind, as a fuzzer takes it."""
    root.mkdir(exist_ok=True)

    def of(kind: Kind, data: bytes) -> Target:
        return Target(kind.name, 0.3, lambda rng: kind.mutate(data, rng), lambda changed: check(kind, changed))

    return [of(kind, kind.path.read_bytes()) for kind in kinds(root)]
