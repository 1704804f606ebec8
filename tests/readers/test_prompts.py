"""Prompts as their files come: I2P's columns, COCO's captions, JSON lines, texts, calibration sets."""

from __future__ import annotations

import itertools
import json

import pytest

from uwm.errors import BadInput
from uwm.readers.prompts import Prompt, read_prompts

I2P = """prompt,categories,hard,inappropriate_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,url
"a fight, in oil","violence, hate",0,37.5,4200000001,7.5,512,768,https://nowhere.example/1
a bar,illegal activity,1,12.5,12,7,512,512,
"""


def test_i2p_s_columns_are_read_as_they_come(tmp_path):
    (tmp_path / "i2p.csv").write_text(I2P, "utf-8")
    assert read_prompts(tmp_path / "i2p.csv", "unsafe") == [
        Prompt("a fight, in oil", "unsafe", 4200000001, ("violence", "hate"), 7.5, 512, 768),
        Prompt("a bar", "unsafe", 12, ("illegal activity",), 7.0, 512, 512),
    ]


def test_coco_s_captions_are_safe_prompts(tmp_path):
    found = {"images": [], "annotations": [{"image_id": 1, "id": 2, "caption": "A dog. "}]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(found))
    (one,) = read_prompts(tmp_path / "captions_val2014.json", "safe")
    assert (one.text, one.side, one.guidance) == ("A dog.", "safe", None)


def test_rows_may_say_their_side_and_a_text_has_a_prompt_a_line(tmp_path):
    rows = [{"prompt": "a", "side": "safe"}, {"caption": "b", "concept": "death"}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_prompts(tmp_path / "own.jsonl", "unsafe")
    assert [(one.text, one.side, one.concepts) for one in found] == [("a", "safe", ()), ("b", "unsafe", ("death",))]
    (tmp_path / "own.txt").write_text("one\n\ntwo\n")
    assert [one.text for one in read_prompts(tmp_path / "own.txt", "safe")] == ["one", "two"]


def test_concepts_are_a_list_or_a_text_with_commas(tmp_path):
    rows = [{"prompt": "a", "categories": given} for given in (["hate", "arms, illegal "], "hate, arms", [], None)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [one.concepts for one in read_prompts(tmp_path / "own.jsonl", "unsafe")]
    assert found == [("hate", "arms, illegal"), ("hate", "arms"), (), ()]


@pytest.mark.parametrize("form", ["folder", "file"])
def test_both_sides_of_a_calibration_set_are_read(form, tiny_set):
    found = read_prompts(tiny_set if form == "folder" else tiny_set / "pairs.jsonl", "unsafe", split="test")
    assert [one.side for one in found] == ["safe"] * 8 + ["unsafe"] * 8
    assert {one.concepts for one in found} == {("weapons",), ("death",)}


def test_seeds_are_the_prompt_s_own_and_do_not_depend_on_the_file(tmp_path):
    for name, lines in (("one", "a\nb\nc"), ("two", "c\na")):
        (tmp_path / f"{name}.txt").write_text(lines)
    one, two, other = (
        {prompt.text: prompt.seed for prompt in read_prompts(tmp_path / f"{name}.txt", "safe", seed=seed)}
        for name, seed in (("one", 0), ("two", 0), ("one", 1))
    )
    assert {text: one[text] for text in two} == two
    assert len({*one.values(), *other.values()}) == 6


def test_several_images_of_a_prompt_have_seeds_that_follow_one_another(tmp_path):
    (tmp_path / "i2p.csv").write_text(I2P, "utf-8")
    found = read_prompts(tmp_path / "i2p.csv", "unsafe", each=2)
    assert [one.seed for one in found] == [4200000001, 4200000002, 12, 13]
    assert len({one.name for one in found}) == 4


def test_a_limit_holds_for_each_side_and_is_drawn(tiny_set):
    whole = read_prompts(tiny_set, "unsafe")
    found = read_prompts(tiny_set, "unsafe", limit=5)
    assert [one.side for one in found] == ["safe"] * 5 + ["unsafe"] * 5
    assert found == [one for one in whole if one in found]
    assert found != read_prompts(tiny_set, "unsafe", limit=5, seed=1)


def test_an_image_s_name_knows_what_its_prompt_asks_for():
    choices = itertools.product((None, 8.0), (None, 8), (None, 8))
    names = {Prompt("a", "safe", 1, guidance=own, width=width, height=height).name for own, width, height in choices}
    assert len(names) == 8
    assert Prompt("a\n7.5", "safe", 1).name != Prompt("a", "safe", 1, guidance=7.5).name
    assert Prompt("a", "safe", 1, ("x",)).name == Prompt("a", "unsafe", 1).name
    assert Prompt("a", "safe", 1).name == "5d449b432f360e09-1.png"


@pytest.mark.parametrize(("name", "content", "words"), [
    ("p.jsonl", '{"promt": "a"}', r"p.jsonl:1: no prompt, caption or text; found \['promt'\]"),
    ("p.jsonl", '{"prompt": 3}', "p.jsonl:1: 'prompt' is 3, expected a string"),
    ("p.jsonl", '{"prompt": "a", "side": "good"}', "p.jsonl:1: side is 'good', expected safe or unsafe"),
    ("p.jsonl", '{"prompt": "a", "seed": -1}', "p.jsonl:1: seed is -1, expected a whole number from 0"),
    ("p.jsonl", '{"prompt": "a", "seed": 1e30}', "expected a whole number from 0"),
    ("p.jsonl", '{"prompt": "a", "categories": 3}', "p.jsonl:1: categories is 3, expected a text with commas"),
    ("p.jsonl", '{"prompt": "a", "concept": ["x", 3]}', r"p.jsonl:1: concept is \['x', 3\], .* or a list of texts"),
    ("p.csv", "prompt,sd_guidance_scale\na,much\n", "p.csv:2: sd_guidance_scale is 'much', expected a number from 0"),
    ("p.csv", "prompt\n\xff\n", "p.csv: not UTF-8 at byte"),
    ("p.json", '{"annotations": 3}', "p.json: expected COCO's captions, an object with a list of 'annotations'"),
    ("p.txt", "\n", "p.txt: no prompt in it"),
    ("p.yaml", "a", r"p.yaml: expected prompts as JSON lines \(.jsonl\), .csv, .txt, COCO's captions"),
    ("p.csv", None, "p.csv: no such file"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_line(name, content, words, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=words):
        read_prompts(tmp_path / name, "unsafe")


def test_a_guidance_beyond_all_floats_is_refused(tmp_path):
    (tmp_path / "own.jsonl").write_text(f'{{"prompt": "a", "guidance": 1{"0" * 400}}}')
    with pytest.raises(BadInput, match="own.jsonl:1: guidance is 1000.*…, expected a number from 0"):
        read_prompts(tmp_path / "own.jsonl", "safe")
