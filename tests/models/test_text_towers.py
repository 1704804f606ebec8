"""Captions go through every text tower of open_clip's registry as open_clip sends them."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
import transformers
from families import OC_TEXT, OC_VISION, shaken
from safetensors.torch import save_file
from terminal import ALL_OF_CALIB

import uwm
from uwm.errors import BadInput

LENGTH = 16
WORDS = "a picture of dog cat tree car cup knife bomb skull and number".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789!"
CAPTIONS = ["a dog", "a picture of a cat and a tree", "", "!", "knife", "a picture of a bomb and " * 9, "a DOG "]
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}


def pieces(*special):
    """A unigram vocabulary, as sentencepiece makes it."""
    whole = [(f"▁{word}", -2.0 - number) for number, word in enumerate(WORDS)]
    return [(token, 0.0) for token in special] + whole + [("▁", -20.0)] + [(letter, -30.0) for letter in LETTERS]


def letters(space, *special):
    """A byte-pair vocabulary without merges."""
    return {token: number for number, token in enumerate([*special, space, *LETTERS])}


XLM = ("<s>", "<pad>", "</s>", "<unk>")
TOKENIZERS = {  # what a registered tokenizer's name begins with -> one of its class, with its special tokens and pad id
    "roberta-": lambda: transformers.RobertaTokenizer(vocab=letters("Ġ", *XLM, "<mask>"), merges=[]),
    "xlm-roberta-": lambda: transformers.XLMRobertaTokenizer(vocab=[*pieces(*XLM), ("<mask>", 0.0)]),
    "facebook/xlm-v": lambda: transformers.XLMRobertaTokenizer(vocab=[*pieces(*XLM), ("<mask>", 0.0)]),
    "facebook/nllb": lambda: transformers.NllbTokenizer(vocab=letters("▁", *XLM), merges=[]),
    "google/mt5": lambda: transformers.T5Tokenizer(vocab=pieces("<pad>", "</s>", "<unk>"), extra_ids=0),
    "bert-": lambda: transformers.BertTokenizer(
        vocab={w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    ),
    "timm/ViT-B-16-SigLIP": lambda: transformers.T5Tokenizer(
        vocab=pieces("<pad>", "</s>", "<unk>"), extra_ids=0, pad_token="</s>"
    ),
    "timm/SigLIP2": lambda: transformers.GemmaTokenizer(
        vocab=letters("▁", "<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
        merges=[], add_bos_token=False, add_eos_token=True, padding_side="right",
    ),
}  # fmt: skip
FAIRSEQ = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
ENCODERS = {  # what transformers' name of a text tower begins with -> its config in small
    "roberta-": lambda v: transformers.RobertaConfig(**WIDTH, **FAIRSEQ, vocab_size=v, max_position_embeddings=34),
    "xlm-roberta-": lambda v: transformers.XLMRobertaConfig(
        **WIDTH, **FAIRSEQ, vocab_size=v, max_position_embeddings=34
    ),
    "google/mt5": lambda v: transformers.MT5Config(
        d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=v
    ),
    "facebook/nllb": lambda v: transformers.M2M100Config(
        vocab_size=v, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=40,
    ),
    "bert-": lambda v: transformers.BertConfig(**WIDTH, vocab_size=v, max_position_embeddings=512),
}  # fmt: skip


def by_name(table, name):
    """The row with the longest beginning of a name."""
    name = "timm/SigLIP2" if "SigLIP2" in name else name
    return table[max((key for key in table if name.startswith(key)), key=len)]


def registered_towers():
    """Every kind of text tower that open_clip registers, without its sizes: name of an architecture -> its config."""
    kinds = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text = {k: v for k, v in config["text_cfg"].items() if k not in ("width", "heads", "layers", "vocab_size")}
        text |= {"mlp_ratio": 2, "context_length": LENGTH}
        shape = {"custom_text": config.get("custom_text", False)}
        shape |= {"multimodal_cfg": {}} if "multimodal_cfg" in config else {}
        for key in ("hf_model_name", "hf_tokenizer_name"):  # one of each family
            if text.get(key):
                text[key] = text[key].replace("-large", "-base").replace("-xl", "-base").replace("1.3B", "600M")
                text[key] = "timm/SigLIP2" if "SigLIP2" in text[key] else text[key].replace("-i18n-256", "")
        kinds.setdefault(json.dumps([text, shape], sort_keys=True), (name, text, shape))
    return {name: (text, shape) for name, text, shape in kinds.values()}


TOWERS = registered_towers()
BERT = {"hf_model_name": "bert-base-uncased", "hf_tokenizer_name": "bert-base-uncased", "context_length": LENGTH}
TOWERS |= {  # open_clip builds them, though it registers none
    f"bert {pooler}": (BERT | {"hf_pooler_type": pooler, "hf_proj_type": "linear"}, {})
    for pooler in ("cls_pooler", "mean_pooler", "cls_last_hidden_state_pooler")
}


def write_folder(folder, text, shape):
    """An open_clip folder with such a text tower, small, its weights random."""
    text, folder = dict(text), folder / "in"
    folder.mkdir()
    vocabulary = 49408
    if text.get("hf_tokenizer_name"):
        tokenizer = by_name(TOKENIZERS, text["hf_tokenizer_name"])()
        tokenizer.save_pretrained(folder)
        vocabulary = len(tokenizer)
    if text.get("hf_model_name"):
        by_name(ENCODERS, text["hf_model_name"])(vocabulary).save_pretrained(folder.parent / "text")
        text["hf_model_name"] = str(folder.parent / "text")
    else:
        text = {"width": 32, "heads": 2, "layers": 2, "vocab_size": vocabulary} | text
    shape, vision = dict(shape), OC_VISION
    if "multimodal_cfg" in shape:
        shape["multimodal_cfg"] = OC_TEXT | {"context_length": LENGTH, "attn_pooler_heads": 2}
        vision = OC_VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    config = {"embed_dim": 24, **shape, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    module = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    state = {key: tensor.clone().contiguous() for key, tensor in shaken(module).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module", params=TOWERS)
def case(request, tmp_path_factory):
    """A text config, a folder with such a tower, and uwm's and open_clip's model of it."""
    text, shape = TOWERS[request.param]
    folder = write_folder(tmp_path_factory.mktemp("towers"), text, shape)
    return text, folder, uwm.load(folder), open_clip.create_model(f"local-dir:{folder}").eval()


@torch.no_grad()
def test_captions_embed_as_open_clip_embeds_them(case):
    """Of uneven length, empty, filling the context; whatever stands beside them in a batch."""
    _, folder, model, module = case
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    expected = module.encode_text(theirs)
    ids, mask = model.tokenize(CAPTIONS)
    assert torch.equal(ids, theirs)
    torch.testing.assert_close(model.encode_text(ids, mask), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    for number in (0, 2, 5):
        alone = model.encode_text(*model.tokenize([CAPTIONS[number]]))
        torch.testing.assert_close(alone[0], expected[number], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_tower_computes_at_the_length_that_open_clip_gives(case):
    """Not at the most that its positions allow, 512 for BERT."""
    text, _, model, _ = case
    lengths = []
    inner = model.module.text if hasattr(model.module, "text") else model.module
    handle = inner.transformer.register_forward_hook(lambda module, args, output: lengths.append(output))
    ids, mask = model.tokenize(CAPTIONS)
    model.encode_text(ids, mask)
    handle.remove()
    (output,) = lengths
    found = getattr(output, "last_hidden_state", output)
    assert found.shape[1] == LENGTH + (1 if text.get("embed_cls") else 0)


def test_the_mask_counts_the_tokens_of_the_caption(case):
    """Those that are no padding by the tokenizer's own mask; all of them where the tower attends to padding."""
    text, folder, model, _ = case
    ids, mask = model.tokenize(CAPTIONS)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if text.get("no_causal_mask") or text.get("pool_type") == "last":
        assert mask.all()
    elif text.get("hf_tokenizer_name"):
        clean = [tokenizer.clean_fn(caption) for caption in CAPTIONS]
        padded = {"max_length": LENGTH, "padding": "max_length", "truncation": True}
        assert mask.tolist() == tokenizer.tokenizer(clean, **padded)["attention_mask"]
    elif text.get("embed_cls"):  # CoCa takes "!" for padding, as its token is 0
        assert torch.equal(mask, (ids != 0).long())
    else:
        ends = [min(len(tokenizer.encode(caption)) + 2, LENGTH) for caption in CAPTIONS]
        assert mask.sum(1).tolist() == ends


def test_the_pooled_token_is_that_of_open_clip(case):
    text, _, model, _ = case
    ids, mask = model.tokenize(CAPTIONS)
    pooler = text.get("hf_pooler_type", "mean_pooler" if text.get("hf_model_name") else None)
    if pooler == "mean_pooler":
        assert model.pooled("text", mask, LENGTH) is None
    elif pooler is not None:
        assert not model.pooled("text", mask, LENGTH).any()
    elif (
        text.get("no_causal_mask") and "pool_type" not in text
    ):  # MobileCLIP's end token cannot be told from a full mask
        assert model.pooled("text", mask, LENGTH) is None
    elif text.get("embed_cls"):
        assert (model.pooled("text", mask, LENGTH + 1) == LENGTH).all()
    else:
        ends = {"last": torch.full((len(ids),), LENGTH - 1)}
        ends["eos"] = torch.eq(ids, text.get("eos_id", -1)).int().argmax(1)
        expected = ends.get(text.get("pool_type"), ids.argmax(1))
        assert torch.equal(model.pooled("text", mask, LENGTH), expected)


def damaged(folder, tmp_path, *, without=(), **text):
    """The folder with other entries of its text config, and without some files."""
    copy = shutil.copytree(folder, tmp_path / "damaged")
    for name in without:
        (copy / name).unlink()
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("roberta"), *TOWERS["roberta-ViT-B-32"])


def test_an_edit_of_a_roberta_needs_no_method_beside_it(roberta, tiny_set, tmp_path, run_uwm):
    """Repel finds neither an MLP at one token nor a single projection there; UWM's edit is made and measured."""
    out = tmp_path / "out"
    code, _, err = run_uwm("edit", roberta, "--calib", tiny_set, "-o", out, *ALL_OF_CALIB, "--text-layers", "fc1")
    assert code == 0, err
    assert "repel is not measured beside the edit: --method repel: the text tower has no MLP at the pooled token" in err
    module = open_clip.create_model(f"local-dir:{out}").eval()
    model = uwm.load(out)
    with torch.no_grad():
        ids, mask = model.tokenize(CAPTIONS)
        torch.testing.assert_close(model.encode_text(ids, mask), module.encode_text(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_pooler_type": "max_pooler"}, "max_pooler fails in open_clip itself"),
        ({"hf_model_name": "acme/not-here"}, "the config of its text tower, 'acme/not-here', comes from the Hub"),
        ({"unheard_of": 1}, "open_clip cannot build it .*unheard_of"),
        ({"without": ("tokenizer.json",)}, "the tokenizer's vocabulary is missing .none of merges.txt"),
        ({"tokenizer_kwargs": {"clean": "nope"}}, "the tokenizer 'roberta-base' cannot be had .Invalid clean"),
        ({"hf_tokenizer_name": None}, "the tokenizer makes token 49407, the text tower has 43"),
    ],
)
def test_a_text_tower_that_cannot_work_is_refused(roberta, tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        uwm.load(damaged(roberta, tmp_path, **change)).tokenize(CAPTIONS)


def test_short_captions_are_refused_where_padding_takes_part(tmp_path):
    model = uwm.load(write_folder(tmp_path, *TOWERS["ViT-B-16-SigLIP"]))
    ids, mask = model.tokenize(CAPTIONS)
    with pytest.raises(BadInput, match="attends to padding: pass all 16 tokens of a caption.* not 5"):
        model.encode_text(ids[:, :5], mask[:, :5])
