"""`uwm edit --for`: an edit reaches the layer and the tokens that the reader of the towers reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from families import FAMILIES
from terminal import ALL_OF_CALIB, refused
from transformers import CLIPTextModel

import uwm
from uwm.editing.editors import Pairs, find_editor
from uwm.editing.making import about, gather
from uwm.editing.purposes import PURPOSES, SETTINGS, settings_for
from uwm.editing.settings import make
from uwm.errors import BadInput
from uwm.fitting import make_edits
from uwm.recipe import Recipe, run
from uwm.statistics.batches import pair_batches
from uwm.statistics.passes import run_pass
from uwm.statistics.residuals import ResidualMeans, ResidualShifts


@pytest.fixture
def recipe(tiny_hf, tiny_set):
    return Recipe(str(tiny_hf), str(tiny_set), eval_splits=("test",))


def edited(recipe, **given):
    """Names of the tensors that a run changes, and what it says of itself."""
    found = run(Recipe(**{**vars(recipe), **given}))
    return {str(name) for name in found.patch.changes}, found


# ---------------------------------------------------------------- which layers and tokens


@pytest.mark.parametrize("method", ["redirect", "ablate", "uwm"])
def test_for_llava_the_vision_blocks_are_edited_that_llava_reads(method, recipe):
    settings = {"mass": 0.3} if method == "uwm" else {}
    names, found = edited(recipe, method=method, purpose="llava", settings=settings)
    assert {name.partition(".")[0] for name in names} == {"vision"}
    assert max(int(name.split(".")[1]) for name in names) == 1  # of three blocks
    told = "\n".join(found.warnings)
    assert "vision.2: LLaVA reads layer -2 of its vision tower, so nothing of this is ever read" in told
    assert "--for llava: figures here are of retrieval; measure what it is for by uwm eval --caption LLAVA" in told
    assert found.manifest["settings"]["purpose"] == "llava"


def test_uwm_s_own_mass_for_llava(recipe):
    _, found = edited(recipe, method="uwm", purpose="llava")
    assert found.manifest["settings"]["mass"] == {"vision": 0.085}
    _, found = edited(recipe, method="uwm", purpose="llava", settings={"mass": 0.3})
    assert found.manifest["settings"]["mass"] == {"vision": 0.3}


@pytest.mark.parametrize("method", ["redirect", "ablate", "uwm"])
def test_for_diffusion_the_text_tower_is_edited_to_its_end(method, recipe):
    settings = {"mass": 0.3} if method == "uwm" else {}
    names, _ = edited(recipe, method=method, purpose="diffusion", settings=settings)
    assert {name.partition(".")[0] for name in names} == {"text"}
    assert max(int(name.split(".")[1]) for name in names) == 1  # the last of two


def test_stable_diffusion_xl_is_edited_where_it_reads(tmp_path, tiny_set):
    FAMILIES["stable diffusion xl"].make(tmp_path / "in")
    names, _ = edited(Recipe(str(tmp_path / "in"), str(tiny_set)), purpose="diffusion", eval_splits=("test",))
    assert names == {"text.0.fc2", "text_2.1.fc2"}


def test_redirection_for_retrieval_is_what_it_is_without_a_purpose(recipe):
    found = [edited(recipe, method="redirect", purpose=purpose)[1].patch.changes for purpose in (None, "retrieval")]
    assert found[0].keys() == found[1].keys()
    for name, change in found[0].items():
        assert all((a == b).all() for a, b in zip(change.stored()[1].values(), found[1][name].stored()[1].values(), strict=True))  # noqa: E501  # fmt: skip


# ---------------------------------------------------------------- the statistics are taken there


def counts(model, tiny_set, method, **settings):
    """How many rows a redirection or an ablation sums up."""
    editor = find_editor(method)
    calib = uwm.read_calibration(tiny_set)
    statistics = editor.statistics(model, about(calib), make(editor, settings))
    gather(model, statistics, calib)
    (reducer,) = statistics.reducers.values()
    found = reducer.unsafe if isinstance(reducer, ResidualShifts) else reducer.means
    return {moments.count for moments in found.values()}


@pytest.mark.parametrize("method", ["redirect", "ablate"])
def test_rows_are_patches_or_all_tokens_with_their_padding(method, tiny_hf, tiny_set):
    model = uwm.load(tiny_hf)
    assert counts(model, tiny_set, method, towers="vision", tokens="patches") == {24 * 16}
    assert counts(model, tiny_set, method, towers="vision", tokens="all") == {24 * 17}
    assert counts(model, tiny_set, method, towers="text", tokens="padded") == {24 * 32}
    assert counts(model, tiny_set, method, towers="text") == {24}


@torch.no_grad()
def test_padded_hidden_states_are_those_that_diffusers_reads(tiny_hf, tiny_set):
    """Slow and obvious: captions filled up by the tokenizer, and no mask at all."""
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    means = ResidualMeans([("text", 1)], padded=True)
    run_pass(model, pair_batches(model, calib, batch_size=7, towers=("text",)), [means], ("text",))
    library = CLIPTextModel.from_pretrained(tiny_hf).eval()
    texts = [pair.unsafe_text for pair in calib.pairs]
    tokens = model.tokenizer()._tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt").input_ids
    states = library(tokens, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(
        means.means["text", 1, 1].mean.float(), states.flatten(0, 1).mean(0), rtol=1e-4, atol=1e-5
    )


def test_captions_are_filled_up_with_the_tokenizer_s_own_token(tiny_hf, tiny_open_clip):
    for folder in (tiny_hf, tiny_open_clip):
        model = uwm.load(folder)
        ids, mask = model.padded(*model.tokenize(["a dog", "a dog and a cat"]))
        assert ids.shape == mask.shape == (2, 32)
        assert mask.all()
        assert ids[0, -1] == 1213  # the end token


def test_the_second_encoder_has_a_tokenizer_of_its_own(tmp_path):
    from families import words_tokenizer

    FAMILIES["stable diffusion xl"].make(tmp_path / "in")
    words_tokenizer(tmp_path / "in" / "tokenizer_2", 24, pad="[UNK]")
    model = uwm.load(tmp_path / "in")
    assert (model.filler("text"), model.filler("text_2")) == (0, 1)


def test_methods_beside_a_padded_one_see_captions_as_ever(tmp_path, tiny_set):
    """Of a model with one tower, all of them could share a pass."""
    FAMILIES["stable diffusion"].make(tmp_path / "in")
    model, calib = uwm.load(tmp_path / "in"), uwm.read_calibration(tiny_set)
    recipe = Recipe(str(tmp_path / "in"), str(tiny_set), method="ablate")
    padded = replace(recipe, method="redirect", settings={"tokens": "padded", "towers": "text"}, beside=("ablate",))
    ours, alone = (make_edits(one, model, calib).edits["ablate"].proposal.report for one in (padded, recipe))
    assert ours == alone


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("purpose", "method", "reads"), [
    ("llava", "repel", "earlier hidden states, and repel edits the pooled embedding"),
    ("diffusion", "null-space", "the hidden states of the text encoder, and null-space edits the projection"),
    ("llava", "hidden-units", "earlier hidden states, and hidden-units edits the last block"),
])  # fmt: skip
def test_a_method_that_does_not_reach_what_is_read_is_refused(purpose, method, reads):
    with pytest.raises(BadInput, match=f"--for {purpose}: reads {reads}"):
        settings_for(purpose, method, {})


def test_what_is_given_goes_before_the_purpose_and_unknown_ones_are_refused():
    assert settings_for("llava", "redirect", {"tokens": "all"})["tokens"] == "all"
    assert settings_for("llava", "of-others", {"x": 1}) == {"x": 1}
    with pytest.raises(BadInput, match="--for 'video': expected one of retrieval, diffusion, llava"):
        settings_for("video", "redirect", {})


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_table_holds_settings_that_there_are(purpose):
    for method, settings in SETTINGS[purpose].items():
        make(find_editor(method), settings)


@pytest.mark.parametrize(("tokens", "tower"), [("padded", "text"), ("patches", "vision")])
@pytest.mark.parametrize("method", ["redirect", "ablate"])
def test_tokens_that_only_one_tower_has(method, tokens, tower, tiny_hf):
    editor = find_editor(method)
    with pytest.raises(BadInput, match=f"--tokens {tokens}: only the {tower} tower has them; add --towers {tower}"):
        editor.statistics(uwm.load(tiny_hf), Pairs(), make(editor, {"tokens": tokens}))


def test_on_the_terminal(run_uwm, tiny_hf, tiny_set, tmp_path):
    flags = ("--calib", tiny_set, *ALL_OF_CALIB, "-q")
    code, out, err = run_uwm("edit", tiny_hf, *flags, "--for", "llava", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert f"uwm eval {tmp_path / 'out'} --caption LLAVA --images PAIRS" in " ".join(out.replace("\\\n", " ").split())
    manifest = json.loads((tmp_path / "out" / "uwm.json").read_text("utf-8"))
    assert (manifest["settings"]["purpose"], manifest["settings"]["method"]) == ("llava", "redirect")
    assert [*manifest["results"]["test"]] == ["before", "redirect", "random"]
    refused(run_uwm("edit", tiny_hf, *flags, "--for", "llava", "--max-loss", "2%", "--dry-run"), 2,
            "--for llava: --max-loss measures retrieval")  # fmt: skip
