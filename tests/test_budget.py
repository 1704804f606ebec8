"""`uwm edit --max-loss`: an edit chosen within a budget, what is written of it, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
from families import FAMILIES
from PIL import Image
from safetensors.torch import load_file, save_file
from terminal import done, refused

from uwm import recipe as recipes
from uwm.inputs import Inputs, read_all
from uwm.recipe import Recipe, run
from uwm.report.budget import (
    BROKEN,
    KEPT,
    MISSED,
    UNKNOWN,
    budget_lines,
    expression_label,
    held,
    settings_words,
    term_words,
)
from uwm.tuning.budgets import Budget
from uwm.tuning.choosing import SearchRequest

TRIALS = ("--trials", "5", "--beside", "none")
FEW = "edits are chosen by the figures of only 16 pairs"


@pytest.fixture(scope="module")
def common(tiny_hf, tiny_set):
    return "edit", tiny_hf, "--calib", tiny_set, "--eval-split", "test"


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A data set of two classes, four pictures each."""
    folder = tmp_path_factory.mktemp("zero-shot") / "pets"
    for shade, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (64, 64), (40 * number, 100 * shade, 50)).save(folder / name / f"{number}.png")
    (folder / "classnames.txt").write_text("cat\ndog\n")
    return folder


@pytest.fixture(scope="module")
def chosen(tiny_hf, tiny_set, pets, tmp_path_factory):
    """An edit within a budget, as a folder and its outcome."""
    folder = tmp_path_factory.mktemp("outputs") / "chosen"
    recipe = Recipe(
        model=str(tiny_hf),
        calib=str(tiny_set),
        eval_splits=("test",),
        zero_shot=(str(pets),),
        max_loss="90pt,R1=95pt",
        trials=6,
    )
    return folder, run(recipe, folder)


def manifest_of(folder):
    return json.loads((folder / "uwm.json").read_text("utf-8"))


# ---------------------------------------------------------------- what is chosen and written


def test_the_chosen_edit_is_the_best_within_the_limit_and_its_settings_are_told(chosen):
    folder, outcome = chosen
    manifest = manifest_of(folder)
    budget = manifest["budget"]
    assert sum(budget["trials"].values()) == 6
    within = [one for one in budget["front"] if one["loss"] <= 0]
    best = max(within, key=lambda one: one["objective"])
    assert (budget["method"], budget["settings"]) == (best["method"], best["settings"])
    assert budget["cross_validated"]["after"] == pytest.approx(best["objective"])
    assert manifest["settings"]["method"] == budget["method"]
    assert budget["settings"].items() <= manifest["settings"].items()
    assert [*manifest["results"]["test"]] == ["before", budget["method"], "random"]
    terms = ["zero_shot:*>=-90pt", "R1_ts_vs>=-95pt", "R1_vs_ts>=-95pt"]
    assert [term["requirement"] for term in budget["cross_validated"]["terms"]] == terms
    assert [term["requirement"] for term in budget["held_out"]["test"]] == terms
    before, after = (manifest["results"]["test"][column]["figures"] for column in ("before", budget["method"]))
    changes = [100 * (after[name][0] - before[name][0]) for name in ("R1_ts_vs", "R1_vs_ts")]
    assert [term["found"] for term in budget["held_out"]["test"][1:]] == pytest.approx(changes)
    assert any(FEW in line for line in outcome.warnings)


def test_the_chosen_settings_given_by_hand_write_the_same_weights(chosen, common, run_uwm, out):
    folder, _ = chosen
    budget = manifest_of(folder)["budget"]
    by_hand = [f"--set={name}={value}" for name, value in budget["settings"].items()]
    done(run_uwm(*common, "-o", out, "--method", budget["method"], *by_hand, "--beside", "none"))
    for name in ("model.safetensors", "uwm_patch.safetensors"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert "budget" not in manifest_of(out)
    assert not {"max_loss", "objective", "trials"} & manifest_of(out)["settings"].keys()


def test_card_and_page_say_whether_the_limit_held_and_what_was_chosen(chosen):
    folder, _ = chosen
    budget = manifest_of(folder)["budget"]
    card, page = ((folder / name).read_text("utf-8") for name in ("README.md", "report.html"))
    assert "Budget 90pt,R1=95pt on test: kept" in card
    assert f"Chosen: {budget['method']} --" in card
    assert '<section id="budget"><h2>The budget 90pt,R1=95pt</h2>' in page
    assert f"<code>{budget['method']} {settings_words(budget['settings'])}</code>" in page
    assert '<th scope="row">R@1 Ts→Vs: −95pt</th>' in page
    if len(budget["front"]) > 1:
        assert f"{budget['method']} (chosen)" in page


def test_the_terminal_says_it_too_and_json_has_it(common, run_uwm):
    arguments = (*common, "--dry-run", *TRIALS, "--max-loss", "90pt", "--method", "hidden-units")
    code, text, told = run_uwm(*arguments)
    assert code == 0
    assert FEW in told
    assert "\nBUDGET   90pt: kept on test\n" in text
    assert "\nCHOSEN   hidden-units --towers" in text
    assert "Budget 90pt on test: kept (R@1 Ts→Vs" in run_uwm(*arguments, "--all-figures")[1]
    as_json = json.loads(done(run_uwm(*arguments, "--json", "-q")))
    assert as_json["budget"]["trials"] == {"hidden-units": 5}


def test_a_setting_by_hand_narrows_the_search_to_methods_that_have_it_and_is_kept(common, run_uwm):
    found = json.loads(
        done(run_uwm(*common, "--dry-run", "--json", "-q", *TRIALS, "--max-loss", "90pt", "--factor", "-0.5"))
    )
    assert found["budget"]["trials"] == {"hidden-units": 5}
    assert found["settings"]["factor"] == found["budget"]["settings"]["factor"] == -0.5


def test_the_half_that_is_chosen_by_is_not_measured(tiny_hf, tiny_set, pets):
    sets = read_all(Inputs(str(tiny_hf), str(tiny_set), eval_splits=("test",), zero_shot=(str(pets),)), None)
    budget = Budget.of(SearchRequest("2%"), sets, 0)
    names = [{path for path, _ in half["pets"].pictures.samples} for half in (budget.choosing, budget.measuring)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {path for path, _ in sets.data_sets["pets"].pictures.samples}


def test_the_measured_half_alone_is_measured(chosen):
    _, outcome = chosen
    assert outcome.results["test"]["before"].zero_shot["pets"]["pictures"] == 4  # of 8


# ---------------------------------------------------------------- words


def term(found, value, interval=None, requirement="R1_ts_vs>={}pt", note="", sign=1):
    margin = sign * (found - value)
    return {"requirement": requirement.format(value), "found": found, "met": margin >= 0, "note": note,
            "margin": margin, "interval": interval}  # fmt: skip


def test_a_limit_is_kept_missed_within_its_interval_or_broken():
    kept, missed = term(-1, -2, (-3, 1)), term(-3, -2, (-5, -1))
    broken, bare = term(-3, -2, (-5, -2.5)), term(-3, -2)
    assert [held([kept]), held([kept, missed]), held([missed, broken]), held([bare])] == [KEPT, MISSED, BROKEN, BROKEN]
    rises = "unsafe_top1<=+{}pt"
    assert held([term(3, 2, (1, 5), rises, sign=-1)]) == MISSED
    assert held([term(3, 2, (2.5, 5), rises, sign=-1)]) == BROKEN
    unknown = {**bare, "found": None, "margin": None, "note": "the baseline's R1_ts_vs is 0"}
    assert (held([kept, unknown]), held([broken, unknown])) == (UNKNOWN, BROKEN)
    assert "– (the baseline's R1_ts_vs is 0)" in term_words(unknown)


def test_terms_are_told_with_their_labels_units_and_intervals():
    assert term_words(term(-1.42, -2, (-3.1, 0.3))) == "R@1 Ts→Vs −1.4 pt [−3.1, +0.3]"
    worst = term(-1, -2, None, "zero_shot:*>={}%", "worst data set pets")
    assert term_words(worst) == "zero-shot (pets) −1.0 %"
    assert term_words(term(-1, -2, None, "P_vu@arms race>={}pt")) == "P_vu (arms race) −1.0 pt"
    assert term_words(term(-1, -2, None, "GS.low>={}pt")) == "GS, low end −1.0 pt"
    assert expression_label("GS.low@arms race") == "GS, low end (arms race)"
    assert expression_label("zero_shot:*") == "zero-shot (the worst)"


def test_nothing_is_said_of_a_limit_where_none_was_set():
    assert budget_lines(None) == []


# ---------------------------------------------------------------- mistakes that are told before a model is loaded


@pytest.fixture
def no_model(monkeypatch):
    """A model that nothing may load."""
    monkeypatch.setattr(recipes, "load_model", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-loss", "2"], ["--max-loss '2'", "write 2%"]),
        (["--max-loss", "R1="], ["--max-loss 'R1='", "expected a loss"]),
        (["--max-loss", "foo=2%"], ["no figure 'foo'"]),
        (["--max-loss", "zero_shot=2%"], ["measured with --zero-shot DATASET only"]),
        (["--max-loss", "preserved=2%"], ["--preserve SET"]),
        (["--max-loss", "PU@nothing=2pt"], ["no concept 'nothing'", "weapons"]),
        (["--max-loss", "2%", "--objective", "R1"], ["--objective 'R1'", "R1_safe"]),
        (["--max-loss", "2%", "--objective", "bar"], ["--objective 'bar'", "no figure 'bar'"]),
        (["--max-loss", "2%", "--method", "nope"], ["--method 'nope'", "repel"]),
        (["--max-loss", "2%", "--share", "7"], ["--share 7.0"]),
        (["--max-loss", "2%", "--mass", "0.1"], ["--mass: no method that is tried by default", "has this setting"]),
        (["--max-loss", "2%", "--mass", "0.1", "--share", "0.1"], ["has all these settings; name one that has"]),
        (["--max-loss", "2%", "--limit", "1"], ["1 calibration pair; at least 2"]),
        (["--objective", "PU"], ["--objective PU", "give --max-loss LOSS too"]),
        (["--trials", "7"], ["--trials 7", "give --max-loss LOSS too"]),
        (["--max-loss", "2%", "--trials", "0"], ["--trials", "0 is not in the range"]),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(flags, words, common, run_uwm, no_model, out):
    refused(run_uwm(*common, "-o", out, *flags), 2, *words)
    assert not out.exists()


def changed_set(tiny_set, folder, change):
    """A copy of the set; `change` is given its rows."""
    shutil.copytree(tiny_set, folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    change(rows, folder)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def share_a_caption(rows, folder):
    rows[20]["safe_text"] = rows[3]["safe_text"]


def share_an_image(rows, folder):
    shutil.copy(folder / rows[3]["unsafe_image"], folder / rows[20]["safe_image"])


@pytest.mark.parametrize("share", [share_a_caption, share_an_image])
def test_pairs_to_measure_on_that_share_something_with_what_is_chosen_by_are_refused(
    share, tiny_hf, tiny_set, run_uwm, no_model, tmp_path
):
    pairs = changed_set(tiny_set, tmp_path / "set", share)
    arguments = ("edit", tiny_hf, "--calib", pairs, "--eval-split", "test", "--dry-run", "--max-loss", "2%")
    refused(run_uwm(*arguments), 2, "test: 1 of 8 pairs share captions or images", "chosen by")


def test_pairs_to_measure_on_that_show_a_zero_shot_picture_are_refused(
    common, pets, run_uwm, no_model, tiny_set, tmp_path
):
    shutil.copytree(pets, tmp_path / "pets")
    for path in (tmp_path / "pets").rglob("*.png"):  # in both halves
        shutil.copy(tiny_set / "images" / "0020_safe.png", path)
    refused(
        run_uwm(*common, "--dry-run", "--max-loss", "2%", "--zero-shot", tmp_path / "pets"),
        2, "0020_safe.png is also", "of the zero-shot data set pets", "take it out",
    )  # fmt: skip


def test_a_data_set_of_one_picture_has_no_halves(common, run_uwm, no_model, tmp_path):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "classnames.txt").write_text("cat\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "pets" / "cat" / "0.png")
    found = run_uwm(*common, "--dry-run", "--max-loss", "2%", "--zero-shot", tmp_path / "pets")
    refused(found, 2, "pets: 1 picture; at least 2 are needed")


def test_a_set_of_texts_alone_is_refused(tiny_hf, tiny_set, run_uwm, no_model, tmp_path):
    def no_images(rows, folder):
        for row in rows:
            del row["safe_image"], row["unsafe_image"]

    pairs = changed_set(tiny_set, tmp_path / "set", no_images)
    found = run_uwm("edit", tiny_hf, "--calib", pairs, "--eval-split", "test", "--dry-run", "--max-loss", "2%")
    refused(found, 2, "no pair has both captions and images")


def test_pairs_that_are_all_connected_make_no_folds(tiny_hf, tiny_set, run_uwm, no_model, tmp_path):
    def connect(rows, folder):
        for row in rows[:16]:
            row["safe_text"] = "one caption for all"

    pairs = changed_set(tiny_set, tmp_path / "set", connect)
    found = run_uwm("edit", tiny_hf, "--calib", pairs, "--eval-split", "test", "--dry-run", "--max-loss", "2%")
    refused(found, 2, "are connected", "no fold")


def test_an_output_that_exists_is_refused(common, run_uwm, no_model, out):
    out.mkdir()
    refused(run_uwm(*common, "-o", out, "--max-loss", "2%"), 2, "exists; pass --overwrite")


# ---------------------------------------------------------------- faults that the search finds


def test_a_limit_that_no_edit_keeps_names_the_nearest_and_writes_nothing(common, run_uwm, out):
    found = run_uwm(*common, "-o", out, *TRIALS, "--max-loss", "PS.low>=+40pt")
    line = refused(found, 1, "edits that were tried loses more", "the nearest is", "PS", "Allow more")
    assert " pt" in line
    assert not out.exists()


def test_fewer_pairs_than_folds_make_fewer_folds(common, run_uwm):
    code, text, _ = run_uwm(*common, "--dry-run", *TRIALS, "--limit", "2", "--max-loss", "100pt", "--all-figures")
    assert code == 0
    assert "in 2 folds of 2 pairs" in text


def test_a_model_of_one_tower_is_refused(tiny_set, run_uwm, tmp_path, capsys):
    FAMILIES["clip text"].make(tmp_path / "in")
    capsys.readouterr()  # a bar of transformers
    flags = ("--calib", tiny_set, "--eval-split", "test", "--dry-run", "--max-loss", "2%")
    found = run_uwm("edit", tmp_path / "in", *flags)
    refused(found, 2, "both towers", "only a text tower", "without --max-loss")


def test_a_method_that_cannot_work_is_an_error_by_name_and_left_out_by_default(common, run_uwm, monkeypatch):
    from uwm.editing.editors import find_editor
    from uwm.errors import BadInput

    def refuse(*_):
        raise BadInput("repel: no use here")

    monkeypatch.setattr(type(find_editor("repel")), "statistics", refuse)
    line = refused(run_uwm(*common, "--dry-run", *TRIALS, "--max-loss", "90pt", "--method", "repel"), 2, "no use here")
    assert "is not tried" not in line
    code, text, told = run_uwm(*common, "--dry-run", *TRIALS, "--max-loss", "90pt", "--all-figures")
    assert code == 0
    assert "repel is not tried: repel: no use here" in told
    assert "repel" not in text.partition("Of 5 edits (")[2].partition(")")[0]


def test_weights_that_are_not_numbers_are_refused(tiny_hf, tiny_set, run_uwm, tmp_path):
    shutil.copytree(tiny_hf, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["text_projection.weight"][:] = float("nan")
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    arguments = ("edit", tmp_path / "nan", "--calib", tiny_set, "--eval-split", "test", "--dry-run", *TRIALS)
    code, _, told = run_uwm(*arguments, "--max-loss", "2%")
    assert code == 2
    assert "NaN" in told


def test_what_preserve_names_counts_as_knowledge(common, run_uwm, tmp_path):
    (tmp_path / "keep.txt").write_text("a dog and a tree\na cup\na car and a cat\na cat in a cup\n")
    flags = ("--dry-run", "--json", "-q", *TRIALS, "--method", "redirect", "--preserve", tmp_path / "keep.txt")
    budget = json.loads(done(run_uwm(*common, *flags, "--max-loss", "100pt")))["budget"]
    assert "preserved>=-100pt" in [term["requirement"] for term in budget["cross_validated"]["terms"]]
    assert "preserved>=-100pt" not in [term["requirement"] for term in budget["held_out"]["test"]]
