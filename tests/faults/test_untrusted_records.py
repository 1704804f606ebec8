"""Records from strangers: what is not of the form of its kind is BadInput that names file, key, expected and found."""

from __future__ import annotations

import json
import os
import stat
import struct

import pytest
import torch
from fuzz.kinds import KEY, TRAINED, kinds
from fuzz.mutations import record_bytes
from random_patches import EVERY_SLOT, FC2, patch_of, scores_of
from safetensors.torch import save_file
from terminal import refused

import uwm
from uwm import records
from uwm.backends.state import load_state
from uwm.cache import SIDES, EmbeddingCache
from uwm.comparison.results import Result, Wanted
from uwm.editing.entries.scores import Scores
from uwm.editing.patch import Patch
from uwm.errors import BadInput, InvalidResult
from uwm.manifest import read_manifest
from uwm.unfinished import Entry, Unfinished
from uwm.weights import WeightId

NAME = "1" * 64  # of some work


def rewritten(path, kind, change):
    """A record whose tensors and description went through `change`."""
    tensors, about = records.read(path, kind)
    change(tensors, about)
    path.write_bytes(record_bytes(tensors, {records.KEY: json.dumps(about)}))
    return path


# ---------------------------------------------------------------- patches

ENTRY = f"weights.{FC2}"
PATCHES = {
    "casts name any attribute of torch": (
        lambda t, a: a["weights"][str(FC2)]["casts_sha256"].update(manual_seed="0" * 64),
        rf"{ENTRY}\.casts_sha256\.manual_seed: expected float32 or float16 or bfloat16, found 'manual_seed'",
    ),
    "a shape of one number": (
        lambda t, a: a["weights"][str(FC2)].update(shape=3),
        rf"{ENTRY}\.shape: expected a list of at least one of at most 2, found 3",
    ),
    "a shape beyond counting": (
        lambda t, a: a["weights"][str(FC2)].update(shape=[2**62, 4]),
        rf"{ENTRY}\.shape\[0\]: expected a whole number from 1 to \d+, found 46",
    ),
    "no hash": (
        lambda t, a: a["weights"][str(FC2)].update(base_sha256="x"),
        rf"{ENTRY}\.base_sha256: expected a sha256, found 'x'",
    ),
    "a number in other digits": (
        lambda t, a: a["weights"].update({"vision.١.fc2": a["weights"].pop(str(FC2))}),
        r"vision\.١\.fc2: expected the name of a tensor such as vision\.11\.fc2",
    ),
    "a number of thousands of digits": (
        lambda t, a: a["weights"].update({f"vision.{'9' * 5000}.fc2": a["weights"].pop(str(FC2))}),
        "expected the name of a tensor such as vision",
    ),
    "a recipe that is a list": (lambda t, a: a.update(recipe=[1]), r"recipe: expected an object, found \[1\]"),
    "a norm that is NaN": (lambda t, a: a["weights"][str(FC2)].update(relative_norm="NaN"), "relative_norm: expected"),
    "aliases that are texts": (
        lambda t, a: a.update(aliases={"a": "b"}),
        r"aliases\.a: expected a list, found 'b'",
    ),
    "a tensor too many": (
        lambda t, a: t.update(more=torch.zeros(2)),
        r"tensor more: expected no tensor of this name, found float32 of \[2\]",
    ),
    "float8 values": (
        lambda t, a: t.update({f"{FC2}:indices": torch.ones(2).to(torch.float8_e5m2)}),
        rf"tensor {FC2}:indices: expected int64 of \[n\], found float8_e5m2 of \[2\]",
    ),
    "missed entries without values": (
        lambda t, a: t.update({f"{FC2}:missed:indices": torch.tensor([0])}),
        rf"tensor {FC2}:missed:indices: expected its partner too, found none",
    ),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_that_is_not_of_its_form_is_refused(source, tmp_path, run_uwm, name):
    change, words = PATCHES[name]
    patch_of(source).save(tmp_path / "p")
    path = rewritten(tmp_path / "p", "patch", change)
    with pytest.raises(BadInput, match=rf"/p: damaged: .*{words}.*; make it anew"):
        Patch.load(path)
    refused(run_uwm("apply", source, path, "-o", tmp_path / "out"), 2, "damaged")
    assert not (tmp_path / "out").exists()


def test_an_object_whose_key_stands_twice_is_no_record(source, tmp_path):
    patch_of(source).save(tmp_path / "p")
    tensors, about = records.read(tmp_path / "p", "patch")
    text = json.dumps(about)
    save_file(tensors, tmp_path / "p", metadata={records.KEY: f'{{"kind": "patch", {text[1:]}'})
    with pytest.raises(BadInput, match="not a file that uwm wrote"):
        Patch.load(tmp_path / "p")


def test_a_patch_of_huge_promises_is_refused_before_memory_is_taken(tmp_path):
    """A sparse file of 4 TB whose header says that its indices fill it."""
    header = {"vision.0.fc2:indices": {"dtype": "I64", "shape": [2**39], "data_offsets": [0, 2**42]}}
    header["__metadata__"] = {records.KEY: json.dumps({"kind": "patch", "format": 2, "weights": {}})}
    text = json.dumps(header).encode()
    with (tmp_path / "p").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + 2**42)
    with pytest.raises(BadInput, match="recipe: expected a value"):
        Patch.load(tmp_path / "p")


# ---------------------------------------------------------------- scores

SCORES = {
    "no base": (lambda t, a: a.pop("base"), "base: expected a value, found None"),
    "no recipe": (lambda t, a: a.pop("recipe"), "recipe: expected a value, found None"),
    "a method that is a list": (
        lambda t, a: a["recipe"].update(method=["uwm"]),
        r"recipe\.method: expected a text, found \['uwm'\]",
    ),
    "scores of one axis": (
        lambda t, a: t.update({str(FC2): t[str(FC2)].reshape(-1)}),
        rf"tensor {FC2}: expected float32 of \[n, n\], found float32 of \[24\]",
    ),
    "scores of no entries": (
        lambda t, a: t.update({str(FC2): torch.zeros(0, 6)}),
        rf"tensor {FC2}: expected float32 of \[n, n\], found float32 of \[0, 6\]",
    ),
    "whole numbers": (lambda t, a: t.update({str(FC2): t[str(FC2)].long()}), "tensor .* found int64"),
    "NaN": (lambda t, a: t[str(FC2)].fill_(torch.nan), rf"tensor {FC2}: expected finite scores, found NaN or infinity"),
    "another weight": (lambda t, a: t.update({"text.0.fc1": t.pop(str(FC2))}), rf"tensor {FC2}: expected to be there"),
    "guards of another weight": (
        lambda t, a: a["guards"].update({"text.9.fc1": {}}),
        r"guards\.text\.9\.fc1: expected a weight that base names too",
    ),
    "counts below zero": (
        lambda t, a: a["guards"][str(FC2)].update(dead_channels=-1),
        rf"guards\.{FC2}\.dead_channels: expected a whole number, found -1",
    ),
    "a tensor that is no weight": (
        lambda t, a: (a["base"].update(x="0" * 64), t.update(x=t[str(FC2)])),
        "base.x: expected the name of a tensor",
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_that_are_not_of_their_form_are_refused(source, tmp_path, run_uwm, name):
    change, words = SCORES[name]
    scores_of(source, [FC2]).save(tmp_path / "s")
    path = rewritten(tmp_path / "s", "scores", change)
    with pytest.raises(BadInput, match=rf"/s: damaged: {words}.*; make them anew with `uwm score`"):
        Scores.load(path)
    refused(run_uwm("select", path, "-o", tmp_path / "patch"), 2, "damaged")


def test_a_block_number_is_written_in_one_way():
    for name in ("vision.01.fc2", "vision.١.fc2", f"vision.{'9' * 5000}.fc2", "vision..fc2"):
        with pytest.raises(BadInput, match="no weight name"):
            WeightId.parse(name)


# ---------------------------------------------------------------- the state of a training


LAYER = next(iter(TRAINED))
STATES = {
    "no step": (lambda t, a: a.pop("step"), "step: expected a value"),
    "an epoch is missing": (
        lambda t, a: a["history"][0].update(epoch=2),
        r"history: expected the epochs 1, 2, 3, …, found \[2\]",
    ),
    "the best of no epoch": (lambda t, a: a.update(best_epoch=7), "best_epoch: expected one of the epochs of history"),
    "sums of no pairs": (lambda t, a: a["sums"].update(pairs=-4), r"sums\.pairs: expected a number from 0 to"),
    "a value that is no number": (
        lambda t, a: a.update(best_value="nan"),
        "best_value: expected a number in a text, found 'nan'",
    ),
    "another shape": (
        lambda t, a: t.update({f"adapter/{LAYER}": torch.ones(4, 2)}),
        r"expected float32 of \[2, 4\], found float32 of \[4, 2\]",
    ),
    "another layer": (lambda t, a: t.update({"adapter/other": torch.ones(2)}), "tensor adapter/other: expected no"),
    "NaN": (lambda t, a: t[f"best/{LAYER}"].fill_(torch.nan), "expected finite values, found NaN"),
    "half of Adam": (lambda t, a: t.pop(f"adam/mean/{LAYER}"), "tensor adam of layer.* expected to be there"),
    "half of a snapshot": (lambda t, a: t.pop(f"1/{LAYER}"), "tensor 1/layer.* expected to be there"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_training_state_that_is_not_of_its_form_is_refused(every, name):
    change, words = STATES[name]
    kind = every["training state"]
    rewritten(kind.path, "training", change)
    with pytest.raises(BadInput, match=rf"/state: damaged: .*{words}.*; remove the file and start anew"):
        load_state(kind.path, KEY, TRAINED)


@pytest.fixture
def every(tmp_path):
    """Name -> a kind with a valid record."""
    return {kind.name: kind for kind in kinds(tmp_path)}


# ---------------------------------------------------------------- results of a comparison

WANTED = Wanted(KEY, {"test": 6}, {"things": 3})
RESULTS = {
    "of another run": (lambda t, a: a.update(run="cd" * 32), f"run: expected {KEY}, the run that this file is named"),
    "of other sets": (lambda t, a: a["figures"].update(more=a["figures"]["test"]), "figures: expected the sets"),
    "of other figures": (lambda t, a: a["figures"].update(test=["GS"]), r"figures\.test: expected the figures"),
    "of fewer pairs": (
        lambda t, a: t.update({"pairs:test": t["pairs:test"][:, :5]}),
        r"tensor pairs:test: expected bool or float32 or float64 of \[\d+, 6\], found bool of \[\d+, 5\]",
    ),
    "NaN": (
        lambda t, a: t.update({"pairs:test": torch.full(t["pairs:test"].shape, torch.nan)}),
        "tensor pairs:test: expected values from 0 to 1, found others",
    ),
    "more than all": (lambda t, a: t.update({"pictures:things": torch.full((3,), 2.0)}), "expected values from 0 to 1"),
    "stopped without epochs": (lambda t, a: a.update(stopped=True), "stopped: expected false"),
    "costs of more": (
        lambda t, a: a["costs"]["edit"].update(other=1),
        r"costs\.edit\.other: expected no such key, found 1",
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_a_comparison_that_is_not_of_its_run_is_refused(every, name):
    change, words = RESULTS[name]
    kind = every["comparison result"]
    rewritten(kind.path, "comparison result", change)
    with pytest.raises(BadInput, match=rf"/result: damaged: .*{words}.*; delete it, and it is made anew"):
        Result.load(kind.path, WANTED)


# ---------------------------------------------------------------- uwm.json, tune.json, the journal

MANIFESTS = {
    "hashes that are a list": ({"output_sha256": []}, r"output_sha256: expected an object, found \[\]"),
    "a hash that is a number": ({"output_sha256": {"a": 1}}, r"output_sha256\.a: expected a sha256, found 1"),
    "a search that is a number": ({"search": 3}, "search: expected a text, found 3"),
    "another format": ({"format": "2"}, "format: expected a whole number from 1 to 3, found '2'"),
    "layers without counts": ({"layers": {"vision.0.fc2": {}}}, r"layers\.vision\.0\.fc2\.kind: expected a value"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_not_of_its_form_is_refused(tmp_path, name):
    content, words = MANIFESTS[name]
    (tmp_path / "uwm.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=rf"uwm\.json: damaged: {words}"):
        read_manifest(tmp_path)


JOURNALS = {
    "no JSON": (lambda line: b"{\n", r"study\.journal:\d+: damaged: no JSON"),
    "another operation": (lambda line: b'{"op_code": 10, "worker_id": "a"}\n', r"line \d+\.op_code: expected 0 or 4"),
    "a figure that is a text": (
        lambda line: line.replace(b'"values":[50.0]', b'"values":["a"]'),
        r"values\[0\]: expected a number, found 'a'",
    ),
    "other settings": (lambda line: line.replace(b"mass", b"alpha"), "expected settings of"),
    "no number": (lambda line: line.replace(b'"number":0,', b""), r"uwm\.number: expected a value"),
    "a number twice": (lambda line: line.replace(b'"number":1,', b'"number":0,'), "every trial once, found a number"),
    "no distribution": (
        lambda line: line.replace(b"CategoricalD", b"D").replace(b"FloatD", b"D"),
        "no search that uwm",
    ),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_a_journal_that_no_search_wrote_is_refused(every, name):
    change, words = JOURNALS[name]
    kind = every["study.journal"]
    before = kind.path.read_bytes().splitlines(keepends=True)
    changed = [change(line) for line in before]
    kind.path.write_bytes(b"".join(changed))
    assert changed != before
    with pytest.raises(BadInput, match=words):
        kind.read(kind.path)


def test_a_journal_that_is_a_link_is_refused(every, tmp_path):
    kind = every["study.journal"]
    kind.path.rename(tmp_path / "elsewhere")
    kind.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is a link or no regular file"):
        kind.read(kind.path)


# ---------------------------------------------------------------- cached embeddings


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache")


def embeddings(value=1.0):
    return {side: torch.full((3, 2), value) for side in SIDES}


def test_an_entry_that_others_wrote_is_not_believed(cache, tmp_path):
    """They know the format and every hash of it, and not the user's secret."""
    cache.put(KEY, embeddings())
    others = EmbeddingCache(tmp_path / "others")
    others.put(KEY, embeddings(7.0))
    entry = cache.folder / f"{KEY}.safetensors"
    entry.write_bytes((others.folder / entry.name).read_bytes())
    assert cache.get(KEY) is None
    cache.put(KEY, embeddings())
    rewritten(entry, "embeddings", lambda t, a: t["safe_text"].fill_(7.0))
    assert cache.get(KEY) is None


@pytest.mark.parametrize("change", ["double", "reshape", "more"])
def test_an_entry_of_another_form_is_not_believed(cache, change):
    made = embeddings()
    made |= {"double": {"safe_text": made["safe_text"].double()}, "reshape": {"safe_text": torch.ones(6)}}.get(
        change, {}
    )
    made |= {"more": torch.ones(1)} if change == "more" else {}
    made = {k: v for k, v in made.items() if change != "drop" or k != "safe_text"}
    cache.put(KEY, made)  # with the user's own secret
    assert cache.get(KEY) is None or change == "drop"


def test_embeddings_of_other_pairs_are_made_anew(tiny_hf, tiny_set, cache, monkeypatch):
    from uwm import embedding

    model, pairs = uwm.load(tiny_hf), uwm.read_calibration(tiny_set, split="test")
    true = embedding.embed(model, pairs)
    for wrong in (
        {"safe_text": torch.ones(8, 24)},
        {s: torch.ones(7, 24) for s in SIDES},
        {s: torch.full((8, 24), torch.nan) for s in SIDES},
    ):
        monkeypatch.setattr(EmbeddingCache, "get", lambda self, key, wrong=wrong: wrong)
        assert torch.equal(embedding.embed(model, pairs, cache=cache).safe_text, true.safe_text)


def test_the_secret_is_made_once_and_only_the_user_reads_it(cache):
    cache.put(KEY, embeddings())
    secret = cache.folder.with_name("cache.key")
    first = secret.read_bytes()
    cache.put("0" * 64, embeddings())
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(first) == 32
    assert secret.read_bytes() == first
    assert sorted(path.name for path in secret.parent.iterdir()) == ["cache", "cache.key"]


@pytest.mark.parametrize("how", ["open to others", "short", "a link", "a folder"])
def test_a_secret_that_is_not_one_is_not_used(cache, how):
    cache.put(KEY, embeddings())
    secret = cache.folder.with_name("cache.key")
    content = secret.read_bytes()
    if how == "open to others":
        secret.chmod(0o644)
    elif how == "short":
        secret.write_bytes(b"")
    elif how == "a link":
        secret.rename(secret.with_name("other"))
        secret.symlink_to("other")
    else:
        secret.unlink()
        secret.mkdir()
    assert cache.get(KEY) is None
    cache.put(KEY, embeddings())
    assert cache.get(KEY) is None
    assert how != "a link" or secret.with_name("other").read_bytes() == content


def test_a_secret_of_another_user_is_not_used(cache, monkeypatch):
    cache.put(KEY, embeddings())
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert cache.get(KEY) is None


# ---------------------------------------------------------------- the work of a run that was stopped


@pytest.fixture
def work(tmp_path):
    """Opens the work of a run: of the user, or of others with a secret of their own."""

    def opened(folder="unfinished"):
        return Unfinished(tmp_path / folder, KEY, every=0.0)

    return opened


def test_work_that_others_wrote_is_not_gone_on_with(work, tmp_path):
    """They know the format and every hash of it, and not the user's secret."""
    work().put(NAME, Entry({"rows": torch.ones(3)}, {"batches": 1}))
    work("others").put(NAME, Entry({"rows": torch.full((3,), 7.0)}, {"batches": 1}))
    file = tmp_path / "unfinished" / KEY / f"{NAME}.safetensors"
    file.write_bytes((tmp_path / "others" / KEY / file.name).read_bytes())
    assert work().get(NAME) is None
    for change in (lambda t, a: t["rows"].fill_(7.0), lambda t, a: a.update(about={"batches": 2})):
        work().put(NAME, Entry({"rows": torch.ones(3)}, {"batches": 1}))
        assert work().get(NAME).about == {"batches": 1}
        rewritten(file, "unfinished", change)
        assert work().get(NAME) is None


def test_work_of_another_run_or_name_is_not_gone_on_with(work, tmp_path):
    work().put(NAME, Entry({"rows": torch.ones(3)}, {"batches": 1}))
    file = tmp_path / "unfinished" / KEY / f"{NAME}.safetensors"
    for run, name in ((KEY, "2" * 64), ("3" * 64, NAME)):
        (tmp_path / "unfinished" / run).mkdir(exist_ok=True)
        (tmp_path / "unfinished" / run / f"{name}.safetensors").write_bytes(file.read_bytes())
        assert Unfinished(tmp_path / "unfinished", run).get(name) is None


def test_the_secret_of_work_and_its_folder_are_the_users_alone(work, tmp_path):
    work().put(NAME, Entry({"rows": torch.ones(3)}))
    assert stat.S_IMODE((tmp_path / "unfinished.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "unfinished" / KEY).stat().st_mode) == 0o700


def test_selecting_still_refuses_scores_with_nan(source):
    """Of the library's own caller, who did not read them from a file."""
    scores = scores_of(source, EVERY_SLOT)
    scores.tensors[FC2][0, 0] = torch.nan
    with pytest.raises(InvalidResult, match="NaN"):
        uwm.select(scores)
