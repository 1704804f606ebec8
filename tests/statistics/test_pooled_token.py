"""Captions are read where they end, or the job stops at its first batch and names both tokens."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from families import FAMILIES, OC_CLIP, TEXT, make_open_clip, shaken
from tokenizers.processors import TemplateProcessing

import uwm
from uwm.errors import BadInput
from uwm.models.student import hugging_face_copy
from uwm.statistics.batches import embed_inputs
from uwm.statistics.pooled_token import _tokens_read, check_pooled_token

CAPTIONS = ["a dog", "a picture of a knife and a bomb"]
END, DOG, SKULL = 3, 7, 14  # token numbers of the tiny tokenizers; SKULL is "skull"


def with_end(folder, end, sub=""):
    """The folder after its text config got another eos_token_id."""
    place = folder / sub / "config.json"
    config = json.loads(place.read_text())
    config.get("text_config", config)["eos_token_id"] = end
    place.write_text(json.dumps(config))
    return folder


@pytest.fixture
def clip(tmp_path):
    FAMILIES["clip"].make(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize("end", [3, 5, 2, 14])
def test_the_token_read_is_the_one_that_transformers_pools(end):
    """Also by its rule for the first configs, whose eos_token_id 2 means the highest id."""
    module = shaken(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT | {"eos_token_id": end})))
    model = uwm.models.HuggingFaceModel(module, None)
    ids = torch.tensor([[2, 4, 14, 3, 0, 0], [2, 14, 5, 4, 4, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    read = _tokens_read(model, "text", ids, mask)
    with torch.no_grad():
        output = module(input_ids=ids, attention_mask=mask)
    for row in range(2):
        at = [p for p in range(6) if torch.allclose(output.last_hidden_state[row, p], output.pooler_output[row])]
        assert read[row].nonzero().flatten().tolist() == at
        assert len(at) == 1


@pytest.mark.parametrize(
    "job",
    [
        ("edit", "{}", "--calib", "{set}", "--split", "calib", "--dry-run"),
        ("score", "{}", "--calib", "{set}", "-o", "{out}"),
        ("eval", "{}", "--pairs", "{set}"),
        ("calib-check", "{set}", "--model", "{}"),
        ("finetune", "{}", "--method", "safe-clip", "--calib", "{set}", "-o", "{out}"),
    ],
    ids=lambda job: job[0],
)
def test_every_job_refuses_a_config_whose_end_token_is_not_the_tokenizer_s(clip, tiny_set, tmp_path, run_uwm, job):
    """Every caption would be read at its first token: all embeddings equal, and an edit of nothing."""
    with_end(clip, 40)
    filled = [part.format(clip, set=tiny_set, out=tmp_path / "out") for part in job]
    code, _, err = run_uwm(*filled, "-q")
    assert code == 2, err
    assert "reads the embedding of a caption at token 2 (position 0), but the caption ends with token 3" in err
    assert "eos_token_id 40" in err
    assert not (tmp_path / "out").exists()


def test_the_legacy_end_token_means_the_highest_id(clip):
    """A caption that has no higher id than its end token does not hide those that have."""
    model = uwm.load(with_end(clip, 2))
    with pytest.raises(BadInput, match=r"at token 7 \(position 2\).*ends with token 3.*the token of the highest id"):
        embed_inputs(model, *model.tokenize(CAPTIONS))


def test_tensors_without_a_tokenizer_are_checked_too(clip):
    model = uwm.load(with_end(clip, 5))
    ids, mask = torch.tensor([[2, 4, 7, 3]]), torch.ones(1, 4, dtype=torch.long)
    batch = uwm.PairBatch(None, None, ids, mask, ids, mask)
    with pytest.raises(BadInput, match="eos_token_id 5"):
        uwm.score(model, [batch])


def test_each_encoder_of_a_pipeline_is_checked_by_its_own_config(tmp_path, tiny_set):
    """Their tokenizers may pad with other tokens: padding after the end changes nothing."""
    FAMILIES["stable diffusion xl"].make(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    ids, mask = model.tokenize(CAPTIONS)
    for pad in (0, END, DOG):
        for tower in ("text", "text_2"):
            check_pooled_token(model, torch.where(mask > 0, ids, pad), mask, tower)
    assert model.end_tokens == {"text": (END, True), "text_2": (END, True)}
    other = uwm.load(with_end(tmp_path / "in", 5, "text_encoder_2"))
    with pytest.raises(BadInput, match=r"the text_2 tower.*eos_token_id 5"):
        uwm.score(other, uwm.read_calibration(tiny_set, split="test"))


@pytest.mark.parametrize("name", [name for name in FAMILIES if "vision" not in name and "llava" not in name])
def test_no_family_s_own_captions_are_refused(name, tmp_path):
    """Short ones, ones that are cut to the context, and an empty one, in one batch and in several."""
    FAMILIES[name].make(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    captions = [*CAPTIONS, "a picture of a dog and a knife " * 20, ""]
    for batch in (captions, captions[2:], captions[3:]):
        for tower in model.layout.towers:
            if tower.encoder.modality == "text":
                check_pooled_token(model, *model.tokenize(batch), tower.name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            {"pool_type": "eos", "eos_id": 5},
            r"at token 2 \(position 0\).*ends with token 3.*pool_type eos with eos_id 5",
        ),
        ({"pool_type": "argmax"}, r"at token 7 \(position 2\).*ends with token 3.*pool_type argmax"),
    ],
)
def test_open_clip_s_pooling_must_find_the_end_token_of_its_tokenizer(tmp_path, text, words):
    make_open_clip(OC_CLIP | {"text_cfg": OC_CLIP["text_cfg"] | text})(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    with pytest.raises(BadInput, match=words):
        embed_inputs(model, *model.tokenize(CAPTIONS))


def test_a_later_caption_with_a_token_above_the_end_token_is_refused(tmp_path):
    """As a token that was added to the tokenizer has: open_clip would read the caption there."""
    make_open_clip(OC_CLIP | {"text_cfg": OC_CLIP["text_cfg"] | {"pool_type": "argmax"}})(tmp_path / "in")
    place = tmp_path / "in" / "tokenizer.json"
    swap = {"[EOS]": 14, "skull": END}  # now "and" and "number", 15 and 16, are above the end token
    tokenizer = json.loads(place.read_text())
    tokenizer["model"]["vocab"] |= swap
    tokenizer["post_processor"]["special_tokens"]["[EOS]"]["ids"] = [14]
    for token in tokenizer["added_tokens"]:
        token["id"] = swap.get(token["content"], token["id"])
    place.write_text(json.dumps(tokenizer))
    model = uwm.load(tmp_path / "in")
    embed_inputs(model, *model.tokenize(["a dog", "a cat"]))
    assert model.end_tokens == {"text": (14, False)}
    embed_inputs(model, *model.tokenize(["a skull", "a knife of a dog"]))
    with pytest.raises(BadInput, match=r"at token 15 \(position 3\).*ends with token 14 \(position 5\)"):
        embed_inputs(model, *model.tokenize(["a bomb", "a dog and a"]))


def test_a_tokenizer_that_adds_no_end_token_is_refused(clip):
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    tokenizer.save_pretrained(clip)
    model = uwm.load(clip)
    with pytest.raises(BadInput, match=r"at token 2 \(position 0\), but the caption ends with token 7"):
        embed_inputs(model, *model.tokenize(CAPTIONS))


def test_a_caption_that_spells_the_end_token_is_refused(clip):
    """transformers reads the embedding at the first one."""
    model = uwm.load(clip)
    embed_inputs(model, *model.tokenize(CAPTIONS))
    with pytest.raises(BadInput, match=r"at token 3 \(position 2\).*token 3 \(position 4\)"):
        embed_inputs(model, *model.tokenize(["a [EOS] dog"]))


def test_a_checked_model_is_not_run_twice(clip):
    model = uwm.load(clip)
    runs = []
    handle = model.module.text_model.register_forward_hook(lambda *_: runs.append(1))
    for captions in (CAPTIONS, CAPTIONS, ["a skull"]):
        embed_inputs(model, *model.tokenize(captions))
    handle.remove()
    assert len(runs) == 4  # the first batch twice


@pytest.mark.parametrize("text", [{"pool_type": "eos", "eos_id": END}, {"pool_type": "argmax", "vocab_size": 40}])
def test_the_student_of_an_open_clip_model_reads_where_the_model_reads(tmp_path, text):
    """Also where the end token is not the vocabulary's last one."""
    make_open_clip(OC_CLIP | {"text_cfg": OC_CLIP["text_cfg"] | text})(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    ids, mask = model.tokenize(CAPTIONS)
    with torch.no_grad():
        expected = model.encode_text(ids, mask)
        torch.testing.assert_close(hugging_face_copy(model).encode_text(ids, mask), expected, rtol=1e-4, atol=1e-5)
