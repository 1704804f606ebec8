"""Real comparisons of the tiny model: what is measured, what is shared, what a killed run leaves, what is done."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from tiny_comparison import Watch, figures, results, zero_shot_folder

import uwm
from uwm.comparison import CompareRecipe, compare, planned
from uwm.errors import BadInput
from uwm.recipe import Recipe, run

METHODS = ("uwm,uwm:difference,uwm:mass=0.1,grad-unsafe", "random,magnitude")


@pytest.fixture(scope="module")
def recipe(tiny_hf, tiny_set, made, tmp_path_factory):
    return CompareRecipe(
        model=str(tiny_hf),
        calib=str(tiny_set),
        methods=(*METHODS, f"edited={made / 'edited'}"),
        seeds=(0, 1),
        masses=(0.05, 0.2),
        eval_splits=("test",),
        zero_shot=(str(zero_shot_folder(tmp_path_factory.mktemp("data"))),),
    )


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("comparisons") / "out"


@pytest.fixture(scope="module")
def found(recipe, output, watch):
    return compare(recipe, output, progress=watch)


def rows(found, name="test"):
    return {(row.method, row.at and row.at[1]): row for row in found.tables[name]}


def means(row):
    return {name: figure.value[0] for name, figure in row.figures.items()}


def shares(result):
    return {name: figure[0] for name, figure in result.figures.items()}


def test_a_row_for_each_method_and_point(found):
    curves = [(name, mass) for name in ("uwm", "uwm:difference") for mass in (0.05, 0.2)]
    more = [(name, mass) for name in ("grad-unsafe", "random", "magnitude") for mass in (0.05, 0.2)]
    assert [*rows(found)] == [("none", None), *curves, ("uwm:mass=0.1", None), *more, ("edited", None)]
    assert found.pairs == {"test": 8}


def test_none_is_the_model_and_a_checkpoint_is_what_it_holds(found, tiny_hf, tiny_set, made):
    pairs = uwm.read_calibration(tiny_set, split="test")
    for name, path in (("none", tiny_hf), ("edited", made / "edited")):
        own = shares(uwm.evaluate(uwm.load(path), pairs))
        assert {figure: means(rows(found)[name, None])[figure] for figure in own} == own


def test_an_edit_is_measured_as_uwm_edit_measures_it(recipe, tmp_path):
    alone = replace(recipe, methods=("uwm:mass=0.1", "random:mass=0.1"), masses=(), seeds=(0,), validation=0.0)
    found = rows(compare(alone, tmp_path / "out"))
    shared = {name: getattr(recipe, name) for name in ("model", "calib", "eval_splits", "zero_shot")}
    edited = run(Recipe(**shared, settings={"mass": 0.1}))
    for method, column in (("uwm:mass=0.1", "uwm"), ("random:mass=0.1", "random"), ("none", "before")):
        theirs = edited.results["test"][column]
        ours = found[method, None].figures
        assert {name: ours[name].value for name in theirs.figures} == theirs.figures
        known = theirs.zero_shot["things"]
        assert ours["zero_shot"].value == pytest.approx((known["top1"], *known["top1_interval"]))
        assert ours["zero_shot:safe"].value[0] == pytest.approx(known["top1_safe"])
        assert ours["zero_shot:unsafe"].value[0] == pytest.approx(known["top1_unsafe"])
    assert found["uwm:mass=0.1", None].changed == sum(edited.patch.counts().values())


def test_all_methods_learn_from_the_same_pairs_which_the_seed_chooses(found, recipe, tiny_hf, tiny_set):
    assert found.about["calibration"] == {str(seed): {"pairs": 14, "validation_pairs": 2} for seed in (0, 1)}
    calib, model = uwm.read_calibration(tiny_set, split="calib"), uwm.load(tiny_hf)
    sums = []
    for seed in (0, 1):
        kept, _ = calib.holdout(0.1, seed)
        patch = uwm.select(uwm.score(model, kept), mass=0.2)
        with uwm.patched(model, patch):
            sums.append(shares(uwm.evaluate(model, uwm.read_calibration(tiny_set, split="test")))["P_vu"])
    figure = rows(found)["uwm", 0.2].figures["P_vu"]
    assert figure.value[0] == pytest.approx(sum(sums) / 2)
    assert figure.seeds == (min(sums), max(sums))


def test_controls_change_as_many_entries(found):
    for mass in (0.05, 0.2):
        changed = {name: rows(found)[name, mass].changed for name in ("uwm", "random", "magnitude")}
        assert len({*changed.values()}) == 1
    distinct = [means(rows(found)[name, 0.2]) for name in ("none", "uwm", "random", "magnitude") if name != "none"]
    assert all(one != other for i, one in enumerate(distinct) for other in distinct[:i])


def test_one_profile_serves_all_points_and_controls(found, watch):
    # a seed: uwm (with its own mass and both controls), uwm:difference, grad-unsafe
    assert watch.count(": profile") == 2 * 3


def test_every_run_says_which_it_is(found, watch, recipe, output):
    runs = len({*results(output)})
    assert runs == 2 + 2 * (2 + 2 + 1 + 2 + 2 + 2)  # none and the checkpoint are the same with every seed
    assert watch.planned == [f"run {number}" for number in range(1, runs + 1)]
    assert watch.stages == [*watch.planned, ""]
    assert any(bar.startswith("none seed 0: ") for bar in watch.bars)


def test_what_it_took_is_told(found):
    for (method, _), row in rows(found).items():
        assert (row.seconds is None) == (method in ("none", "edited"))
        assert row.seconds is None or (row.seconds > 0 and row.peak_memory_mb > 50)
    assert rows(found)["uwm", 0.05].seconds == pytest.approx(rows(found)["uwm", 0.2].seconds, rel=0.9)


def test_nothing_is_left_but_results_and_tables(found, output):
    tables = {f"comparison.{suffix}" for suffix in ("md", "csv", "tex", "json", "svg", "png")}
    assert {path.name for path in output.iterdir()} == {"uwm.json", "report.html", "results", *tables}


def test_a_second_run_makes_nothing_anew(found, recipe, output):
    before = {path: path.stat().st_mtime_ns for path in (output / "results").iterdir()}
    texts = {path.name: path.read_bytes() for path in output.glob("comparison.*")}
    again = Watch()
    assert compare(recipe, output, progress=again) == found
    assert again.bars == []
    assert {path: path.stat().st_mtime_ns for path in (output / "results").iterdir()} == before
    assert {path.name: path.read_bytes() for path in output.glob("comparison.*")} == texts
    assert all(done for _, done in planned(recipe, output))


@pytest.mark.parametrize("until", [7, 40])
def test_a_killed_run_continues_to_the_same_end(until, found, recipe, output, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, tmp_path / "out", progress=Watch(until))
    assert not [*tmp_path.rglob(".uwm-*")]
    there = results(tmp_path / "out") if (tmp_path / "out" / "results").exists() else {}
    assert len(there) < len(results(output))
    compare(recipe, tmp_path / "out")
    assert results(tmp_path / "out") == results(output)
    assert figures(tmp_path / "out") == figures(output)


def test_a_method_more_makes_only_its_own(found, recipe, output):
    more, watch = replace(recipe, methods=("uwm", "uwm:unsafe-only"), masses=(0.2,)), Watch()
    assert [(name, done) for name, done in planned(more, output) if not done] == [
        ("uwm:unsafe-only τ 0.2 seed 0", False),
        ("uwm:unsafe-only τ 0.2 seed 1", False),
    ]
    compare(more, output, progress=watch)
    assert watch.count(": profile") == 2
    compare(recipe, output)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 5},
        {"dtype": "bfloat16"},
        {"eval_splits": ("calib",), "split": "test"},
        {"validation": 0.3},
        {"text_layers": "none"},
        {"seeds": (2,)},
        {"zero_shot": ()},
    ],
    ids=str,
)
def test_other_settings_are_other_results(change, found, recipe, output):
    done = {name for name, there in planned(replace(recipe, **change), output) if there}
    assert done <= ({"none seed 0", "none seed 1", "edited seed 0", "edited seed 1", "none seed 2", "edited seed 2"})
    if {"batch_size", "dtype", "eval_splits", "zero_shot"} & {*change}:
        assert not done


def test_another_model_or_checkpoint_is_another_result(found, recipe, output, made):
    other = replace(recipe, methods=(f"edited={made / 'applied'}", f"more={made / 'edited'}"))
    assert [done for _, done in planned(replace(recipe, model=str(made / "applied")), output)].count(True) == 0
    done = dict(planned(other, output))
    assert done["more seed 0"]
    weights = [load_file(made / name / "model.safetensors") for name in ("edited", "applied")]
    same = all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    assert done["edited seed 0"] == same


def test_overwrite_makes_everything_anew(recipe, tmp_path):
    small = replace(recipe, methods=("uwm",), masses=(0.2,), seeds=(0,))
    compare(small, tmp_path / "out")
    watch = Watch()
    compare(small, tmp_path / "out", overwrite=True, progress=watch)
    assert watch.count(": profile") == 1


def test_json_has_everything(found, output):
    whole = json.loads((output / "comparison.json").read_text("utf-8"))
    assert whole == json.loads(json.dumps(found.as_dict()))
    assert whole["settings"]["model"] == "tiny-hf"
    assert whole["settings"]["calib"] == "tiny-set"
    assert whole["settings"]["methods"] == [*dict.fromkeys(row.method for row in found.tables["test"])]
    row = whole["tables"]["test"][1]
    assert row["at"] == {"by": "mass", "value": 0.05}
    assert {*row["figures"]["GS"]} == {"value", "seeds", "difference"}


def test_no_path_of_this_machine_is_written(found, recipe, output):
    for path in (output / "report.html", *output.glob("comparison.*")):
        assert recipe.calib.encode() not in path.read_bytes()
        assert recipe.model.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": (0, 0)}, "--seeds 0,0: expected different numbers"),
        ({"seeds": ()}, "--seeds: expected at least one"),
        ({"masses": (0.1, 2.0)}, "mass 2.0"),
        ({"masses": (0.1, 0.1)}, "--masses 0.1,0.1: expected different numbers"),
        ({"at_epochs": (0,)}, "--at-epochs 0: expected different numbers from 1"),
        ({"validation": 1.0}, "--validation 1.0"),
        ({"validation": 0.0, "methods": ("safe-clip",)}, "--validation 0.0: expected a share over 0"),
        ({"methods": ("mine=no/such/place",)}, "no/such/place"),
        ({"methods": ("safe-clip:epochs=0",)}, "--epochs 0"),
        ({"eval_splits": ("calib",)}, "holds pairs that calibration uses"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_written(change, words, recipe, tmp_path):
    with pytest.raises(BadInput) as caught:
        compare(replace(recipe, **change), tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(recipe, made, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    for folder in (tmp_path / "out", made / "applied"):
        before = sorted(folder.rglob("*"))
        with pytest.raises(BadInput, match=r"holds no comparison|not written by uwm"):
            compare(recipe, folder, overwrite=True)
        assert sorted(folder.rglob("*")) == before
