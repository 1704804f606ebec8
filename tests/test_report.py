"""Tables line up and the model card says what was done, with metadata that the Hub reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from uwm.evaluate import EvalResult
from uwm.report import LEGEND, layer_table, markdown_table, model_card, rows, text_table


def result(gs):
    return EvalResult(8, {"GS": (gs, gs - 0.1, gs + 0.1), "R1_ts_vs": (1.0, 1.0, 1.0)}, {})


def classified(top1):
    return {"top1": top1, "top5": 1.0, "mean_per_class": top1, "pictures": 9, "top1_interval": [top1 - 0.1, 1.0]}


MANIFEST = {
    "model": {"name": "tiny", "layout": "hf-clip", "on_hub": False},
    "settings": {"alpha": -1.0, "mass": 0.02, "calib": "sét"},
    "selected": 30,
    "of": 4000,
    "layers": {"text.0.out_proj": {}, "vision.1.fc2": {}},
}
RESULTS = {"test": {"before": result(0.25), "after": result(0.5)}}


def test_rows_one_a_figure_one_column_a_result():
    assert rows({"before": result(0.25), "after": result(0.5)}) == [
        ["", "before", "after"],
        ["GS", "25.0 [15.0, 35.0]", "50.0 [40.0, 60.0]"],
        ["R@1 Ts→Vs", "100.0 [100.0, 100.0]", "100.0 [100.0, 100.0]"],
    ]


def test_rows_of_zero_shot_accuracy():
    shapes, more = classified(0.9) | {"top1_unsafe": 0.0}, classified(0.5)
    one = replace(result(0.25), zero_shot={"shapes": shapes})
    assert rows({"model": one})[3:] == [
        ["zero-shot (shapes)", "90.0 [80.0, 100.0]"],
        ["zero-shot, unsafe classes (shapes)", "0.0"],
    ]
    two = replace(one, zero_shot={"shapes": shapes, "more": more})
    assert rows({"model": two})[5:] == [
        ["zero-shot (more)", "50.0 [40.0, 100.0]"],
        ["zero-shot, mean of 2 sets", "70.0"],
    ]


def test_text_table_first_column_left_the_others_right():
    assert text_table([["name", "n"], ["a", "10"], ["long name", "3"]]) == "name        n\na          10\nlong name   3"


def test_text_table_has_no_trailing_spaces():
    assert text_table([["x", ""], ["long", ""]]) == "x\nlong"


def test_markdown_table():
    assert markdown_table([["", "a"], ["x", "1"]]) == "|  | a |\n|---|---|\n| x | 1 |"


def test_layer_table():
    assert layer_table({"vision.1.fc2": {"selected": 30, "of": 4000}}) == [
        ["weight", "selected", "of", "share"],
        ["vision.1.fc2", "30", "4000", "0.750 %"],
    ]


@pytest.mark.parametrize(
    ("layout", "library"),
    [("hf-clip", "transformers"), ("open_clip", "open_clip"), ("open_clip-custom-text", "open_clip")],
)
def test_card_metadata_is_read_by_the_hub(layout, library):
    card = ModelCard(model_card(MANIFEST | {"model": MANIFEST["model"] | {"layout": layout}}, RESULTS))
    assert card.data.library_name == library
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.tags == ["uwm", "model-editing", "safety", "clip"]
    assert card.text.lstrip().startswith("# tiny, edited by uwm")


def test_card_names_a_base_model_where_the_hub_has_it():
    model = {"name": "openai/clip-vit-base-patch32", "layout": "hf-clip", "on_hub": True}
    assert ModelCard(model_card(MANIFEST | {"model": model}, RESULTS)).data.base_model == model["name"]
    assert ModelCard(model_card(MANIFEST, RESULTS)).data.base_model is None


def test_card_says_what_was_done_and_what_it_did():
    card = model_card(MANIFEST, RESULTS)
    assert "negated: 30 of 4000 entries of 2 matrices" in card
    assert "On 8 pairs of `test`, none of them used for calibration:" in card
    assert "| GS | 25.0 [15.0, 35.0] | 50.0 [40.0, 60.0] |" in card
    assert LEGEND in card
    assert '"calib": "sét"' in card


def test_card_of_another_alpha():
    card = model_card(MANIFEST | {"settings": {"alpha": 0.5}}, RESULTS)
    assert "multiplied by 0.5" in card
    assert "negated" not in card.replace(LEGEND, "")


def test_card_of_several_sets():
    card = model_card(MANIFEST, RESULTS | {"style": RESULTS["test"]})
    assert card.index("pairs of `test`") < card.index("pairs of `style`")


def test_card_without_results_says_that_nothing_was_measured():
    assert LEGEND not in model_card(MANIFEST, {})
