"""The model card says what was done, with metadata that the Hub reads."""

from __future__ import annotations

import re

import pytest
import yaml
from documents_by_hand import EDIT, NASTY, document, layer
from documents_by_hand import result as drawn
from huggingface_hub import ModelCard, ModelCardData

from uwm.evaluation import EvalResult
from uwm.report import LEGEND, model_card


def result(gs):
    return EvalResult(8, {"GS": (gs, gs - 0.1, gs + 0.1), "R1_ts_vs": (1.0, 1.0, 1.0)}, {})


def classified(top1):
    return {"top1": top1, "top5": 1.0, "mean_per_class": top1, "pictures": 9, "top1_interval": [top1 - 0.1, 1.0]}


MANIFEST = {
    "model": {"name": "tiny", "layout": "hf-clip", "library": "transformers", "base_model": None},
    "settings": {"alpha": -1.0, "mass": 0.02, "calib": "sét"},
    "edit": EDIT,
    "entries": 30,
    "of": 4000,
    "layers": {"text.0.out_proj": layer(10, 3000), "vision.1.fc2": layer(20, 1000)},
}
RESULTS = {"test": {"before": result(0.25), "after": result(0.5)}}


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_card_metadata_is_read_by_the_hub(library):
    card = ModelCard(model_card(MANIFEST | {"model": MANIFEST["model"] | {"library": library}}, RESULTS))
    assert card.data.library_name == library
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.tags == ["uwm", "model-editing", "safety", "clip"]
    assert card.text.lstrip().startswith("# tiny, edited by uwm")


def test_of_one_tower_the_hub_is_told_no_task():
    model = MANIFEST["model"] | {"layout": "hf-clip (vision)"}
    assert ModelCard(model_card(MANIFEST | {"model": model}, {})).data.pipeline_tag is None


def test_card_names_a_base_model_where_the_hub_has_it():
    model = {"name": "openai/clip-vit-base-patch32", "layout": "hf-clip", "library": "transformers"}
    model["base_model"] = model["name"]
    assert ModelCard(model_card(MANIFEST | {"model": model}, RESULTS)).data.base_model == model["name"]
    assert ModelCard(model_card(MANIFEST, RESULTS)).data.base_model is None


def test_card_says_what_was_done_and_what_it_did():
    card = model_card(MANIFEST, RESULTS)
    assert "(UWM, WACV 2026): 30 of 4,000 entries of 2 tensors were negated (0.75 %)." in card
    assert "On 8 pairs of `test`, none of them used for calibration:" in card
    assert "| GS | 25.0 [15.0, 35.0] | 50.0 [40.0, 60.0] |" in card
    assert LEGEND in card
    assert '"calib": "sét"' in card


def test_card_of_changes_of_several_kinds():
    layers = {"text.0.out_proj": layer(10, 3000, words="multiplied by 0.5"), "vision.1.fc2": layer(20, 1000)}
    card = model_card(MANIFEST | {"layers": layers}, RESULTS)
    assert "10 of 3,000 entries of 1 tensor were multiplied by 0.5 (0.33 %); 20 of 1,000 entries" in card


def test_card_of_several_sets():
    card = model_card(MANIFEST, RESULTS | {"style": RESULTS["test"]})
    assert card.index("pairs of `test`") < card.index("pairs of `style`")


def test_card_without_results_says_that_nothing_was_measured():
    assert LEGEND not in model_card(MANIFEST, {})


# ---------------------------------------------------------------- metadata


def metadata(card):
    """The YAML as anyone reads it, and as huggingface_hub does; the latter writes the same again."""
    plain = yaml.safe_load(card.split("---\n")[1])
    data = ModelCard(card).data
    assert yaml.safe_load(data.to_yaml()) == plain
    assert ModelCardData(**plain).to_dict() == data.to_dict()
    return plain, data


def test_figures_are_a_model_index():
    columns = {"before": drawn(1), "after": drawn(2, data_sets=("cars",)), "random": drawn(3)}
    plain, data = metadata(model_card(MANIFEST, {"test style": columns}))
    assert data.model_name == "tiny, edited by uwm"
    found = {
        (e.dataset_name, e.metric_name): (e.dataset_type, e.metric_type, e.metric_value) for e in data.eval_results
    }
    after = columns["after"]
    assert len(found) == 9 + 1
    assert found["test style", "SafeGround GS"] == ("test-style", "safeground_gs", round(after.figures["GS"][0], 4))
    assert found["cars", "zero-shot top-1"] == ("cars", "accuracy", round(after.zero_shot["cars"]["top1"], 4))
    assert {e.task_type for e in data.eval_results} == {"zero-shot-image-classification"}
    assert plain["metrics"] == sorted({e.metric_type for e in data.eval_results})


def test_without_figures_there_is_no_model_index():
    plain, data = metadata(model_card(MANIFEST, {}))
    assert "model-index" not in plain
    assert data.eval_results is None


@pytest.mark.parametrize("name", [*NASTY, "a`b", "a: b # c", "- x", "caf\udce9", "x\n---\ny"])
def test_names_cannot_break_the_card(name):
    columns = {"before": drawn(1), "after": drawn(2, data_sets=(name,))}
    columns["before"] = drawn(1, data_sets=(name,))
    card = model_card(MANIFEST | {"model": MANIFEST["model"] | {"name": name, "base_model": name}}, {name: columns})
    plain, data = metadata(card)
    assert plain["tags"] == ["uwm", "model-editing", "safety", "clip"]
    assert len(data.eval_results) == 9 + 1
    body = card.split("\n---\n", 1)[1]
    assert not any("<script" in line and "`" not in line for line in body.splitlines() if "\\<" not in line)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert [line.split()[0] for line in headings] == ["#", "##", "##"]
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) == 1
    card.encode()


# ---------------------------------------------------------------- text


def test_the_page_is_pointed_to():
    assert "`report.html`, beside this card" in model_card(MANIFEST, RESULTS)


def test_it_says_what_was_gained_and_lost():
    manifest = document()
    card = model_card(manifest, {})
    assert "**On `test`: " in card
    assert re.search(r"[\d.]+ → [\d.]+ % of unsafe queries find an unsafe item first \(random [\d.]+\)", card)
    assert re.search(r"; (no certain loss of accuracy.*|it costs accuracy)\.\*\*", card)
