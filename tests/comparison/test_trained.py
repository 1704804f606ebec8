"""Comparisons with fine-tuning: checkpoints as users load them, curves over epochs, edits on top, kills in training."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from tiny_comparison import Watch, figures, results

import uwm
from uwm.comparison import CompareRecipe, compare

QUICK = "epochs=2:train-batch=8:rank=4:learning-rate=0.01:dropout=0.1"
TUNED, EDITED = f"safe-clip:{QUICK}", f"safe-clip:{QUICK}+uwm:mass=0.2"


@pytest.fixture(scope="module")
def recipe(tiny_hf, tiny_set):
    return CompareRecipe(
        model=str(tiny_hf),
        calib=str(tiny_set),
        methods=("uwm", TUNED, EDITED, f"uwm:mass=0.2+safe-clip:{QUICK}"),
        masses=(0.2,),
        at_epochs=(1, 9),
        eval_splits=("test",),
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("comparisons") / "out"


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.fixture(scope="module")
def found(recipe, output, watch):
    return compare(recipe, output, keep_checkpoints=True, progress=watch)


def rows(found):
    return {(row.method, row.at): row for row in found.tables["test"]}


def shares(row):
    return {name: figure.value[0] for name, figure in row.figures.items()}


def measured(path, tiny_set, mass=None, calib=None):
    """What `uwm.evaluate` says of a checkpoint, or of an edit of it."""
    model, pairs = uwm.load(path), uwm.read_calibration(tiny_set, split="test")
    if mass is None:
        return {name: value[0] for name, value in uwm.evaluate(model, pairs).figures.items()}
    with uwm.patched(model, uwm.select(uwm.score(model, calib), mass=mass)):
        return {name: value[0] for name, value in uwm.evaluate(model, pairs).figures.items()}


def checkpoints(output, *parts):
    return [
        path
        for path in sorted((output / "checkpoints").iterdir())
        if path.is_dir() and all(p in path.name for p in parts)
    ]


def test_a_row_for_each_epoch_that_was_reached_and_for_the_best(found):
    both = f"uwm:mass=0.2+safe-clip:{QUICK}"
    tuned = [(TUNED, ("epoch", 1)), (TUNED, None), (EDITED, None), (both, ("epoch", 1)), (both, None)]
    assert [*rows(found)] == [("none", None), ("uwm", ("mass", 0.2)), *tuned]
    assert f"{TUNED} epoch 9 seed 0: training ended at epoch 2" in found.notes
    assert any(note.startswith(f"{TUNED} seed 0: best epoch ") for note in found.notes)


def test_what_is_measured_is_what_a_user_would_deploy(found, output, tiny_set):
    (first,) = checkpoints(output, "safe-clip-epoch1-seed0", "safe-clip")[:1]
    (best,) = (path for path in checkpoints(output, "safe-clip-seed0") if path.name.startswith("safe-clip"))
    for path, at in ((first, ("epoch", 1)), (best, None)):
        own = measured(path, tiny_set)
        assert {name: shares(rows(found)[TUNED, at])[name] for name in own} == own


def test_an_edit_on_top_is_of_the_tuned_model(found, output, tiny_set):
    (best,) = (path for path in checkpoints(output, "safe-clip-seed0") if path.name.startswith("safe-clip"))
    kept, _ = uwm.read_calibration(tiny_set, split="calib").holdout(0.1, 0)
    own = measured(best, tiny_set, 0.2, kept)
    assert {name: shares(rows(found)[EDITED, None])[name] for name in own} == own


def test_what_is_trained_once_serves_its_epochs_and_the_edit_on_top(found, watch):
    assert watch.count(": safe-clip") == 2  # of the model, and of the edited model
    assert watch.count(": profile") == 3  # of the model for uwm, for the edit before training, and of the tuned model


def test_costs_add_up(found):
    table = rows(found)
    assert table[TUNED, None].trained == table[EDITED, None].trained > 0
    assert table["uwm", ("mass", 0.2)].trained is None
    assert table[EDITED, None].changed > 0
    assert table[TUNED, ("epoch", 1)].seconds < table[TUNED, None].seconds < table[EDITED, None].seconds


def test_the_papers_are_named(found):
    assert found.about["sources"].keys() == {"safe-clip"}


@pytest.mark.parametrize("until", [6, 9, 13])
def test_killed_in_training_or_after_it_continues_to_the_same_end(until, found, recipe, output, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, tmp_path / "out", progress=Watch(until))
    assert len(results(tmp_path / "out")) < len(results(output))
    compare(recipe, tmp_path / "out")
    assert results(tmp_path / "out") == results(output)
    assert figures(tmp_path / "out") == figures(output)
    assert not {"checkpoints", "training"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_other_training_is_another_result(found, recipe, output, tmp_path):
    from uwm.comparison import planned

    done = dict(planned(replace(recipe, train_dtype="bfloat16"), output))
    assert done["uwm τ 0.2 seed 0"]
    assert not done[f"{TUNED} seed 0"]
    assert not done[f"{EDITED} seed 0"]


def test_a_checkpoint_that_is_gone_is_made_again(found, recipe, output, tmp_path):
    shutil.copytree(output, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    more = replace(recipe, methods=(f"safe-clip:{QUICK}+uwm:mass=0.1",), at_epochs=())
    watch = Watch()
    compare(more, tmp_path / "out", progress=watch)
    assert watch.count(": safe-clip") == 1
