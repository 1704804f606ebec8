"""Folders and shards: which files are the weights, where they may lie, and what becomes of their names."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from random_patches import scale
from safetensors.torch import load_file, save_file
from tiny_files import bits, hf_folder, hf_state

import uwm
from uwm.checkpoint import open_checkpoint, write_edited
from uwm.errors import BadInput, Refused
from uwm.weights import WeightId

FC2, KEY = WeightId("vision", 1, "fc2"), "vision_model.encoder.layers.1.mlp.fc2.weight"
FLIPS = torch.tensor([0, 5, 23])


def sharded(folder, state, suffix=".safetensors", stem="model", total=None):
    """Two shards of every other tensor and their index -> the index's weight_map."""
    folder.mkdir(exist_ok=True)
    names = [f"{stem}-0000{n}-of-00002{suffix}" for n in (1, 2)]
    weight_map = {name: names[n % 2] for n, name in enumerate(sorted(state))}
    for shard in names:
        part = {name: state[name] for name in weight_map if weight_map[name] == shard}
        if suffix == ".bin":
            torch.save(part, folder / shard)
        else:
            save_file(part, folder / shard, metadata={"format": "pt"})
    size = sum(t.nbytes for t in state.values()) if total is None else total
    content = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(content))
    return weight_map


def change_index(folder, **content):
    place = next(folder.glob("*.index.json"))
    place.write_text(json.dumps(json.loads(place.read_text()) | content))


# ---------------------------------------------------------------- which files


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["pytorch_model.bin", "model.safetensors", "open_clip_model.safetensors"], "model.safetensors"),
        (["open_clip_pytorch_model.bin", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
        (["pytorch_model.bin.index.json", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin.index.json", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
        (["model.safetensors.index.json", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
    ],
)
def test_f37_weights_are_taken_in_a_fixed_order_and_pickles_last(tmp_path, there, chosen):
    for name in there:
        (tmp_path / name).write_text("never opened")
    save_file(hf_state(), tmp_path / chosen, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert [file.origin.name for file in checkpoint.files] == [chosen]
    assert checkpoint.side_files == ()  # an index of shards that stay behind would mislead


def test_shards_come_before_half_precision_and_before_pickles(tmp_path):
    sharded(tmp_path, hf_state())
    for name in ("model.fp16.safetensors", "pytorch_model.bin", "a.safetensors.index.json"):
        (tmp_path / name).write_text("never opened")
    assert len(open_checkpoint(tmp_path).files) == 2


def test_a_variant_s_shards_come_after_every_other_index(tmp_path):
    sharded(tmp_path, hf_state(), stem="z")
    (tmp_path / "a.safetensors.index.fp16.json").write_text("never opened")
    assert [file.name for file in open_checkpoint(tmp_path).files] == [
        f"z-0000{n}-of-00002.safetensors" for n in (1, 2)
    ]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_variant_s_shards_are_edited_under_its_index(tmp_path, suffix):
    state = hf_state(torch.float16)
    weight_map = sharded(tmp_path / "in", state, suffix, stem="pytorch_model.fp16")
    index = next((tmp_path / "in").glob("*.index.json"))
    index.rename(tmp_path / "in" / f"pytorch_model{suffix}.index.fp16.json")
    (tmp_path / "out").mkdir()
    write_edited(open_checkpoint(tmp_path / "in"), {FC2: scale(FLIPS)}, tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    assert len(written.files) == len(set(weight_map.values()))
    assert written.state_dict().keys() == state.keys()
    name = "pytorch_model.safetensors.index.fp16.json" if suffix == ".safetensors" else "model.safetensors.index.json"
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == [name]


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_keep_their_split(tmp_path, suffix):
    state = hf_state()
    weight_map = sharded(tmp_path / "in", state, suffix, stem="model" if suffix != ".bin" else "pytorch_model")
    (tmp_path / "out").mkdir()
    hashes = write_edited(open_checkpoint(tmp_path / "in"), {FC2: scale(FLIPS)}, tmp_path / "out")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert list(hashes) == names
    assert sorted(os.listdir(tmp_path / "out")) == [*names, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    renamed = {
        n: shard.replace("pytorch_model", "model").replace(".bin", ".safetensors") for n, shard in weight_map.items()
    }
    assert index["weight_map"] == renamed
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in state.values())}
    expected = state[KEY].clone()
    expected.view(-1)[FLIPS] *= -1
    for name in names:
        part = load_file(tmp_path / "out" / name)
        assert part.keys() == {tensor for tensor, shard in renamed.items() if shard == name}
        assert all(torch.equal(bits(t), bits(expected if n == KEY else state[n])) for n, t in part.items())


def test_a_safetensors_index_is_copied_as_it_is(tmp_path):
    sharded(tmp_path / "in", hf_state())
    (tmp_path / "out").mkdir()
    write_edited(open_checkpoint(tmp_path / "in"), {}, tmp_path / "out")
    for name in os.listdir(tmp_path / "in"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_a_shard_keeps_a_prefix_that_its_index_names(tmp_path):
    state = {"module." + name: tensor for name, tensor in hf_state().items()}
    sharded(tmp_path / "in", state, ".bin", "pytorch_model")
    assert open_checkpoint(tmp_path / "in").entries.keys() == state.keys()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_transformers_loads_the_shards_with_the_same_embeddings(tmp_path, tiny_hf, suffix):
    from transformers import CLIPModel

    state = load_file(tiny_hf / "model.safetensors")
    folder = tmp_path / "in"
    sharded(folder, state, suffix, "model" if suffix != ".bin" else "pytorch_model")
    for path in tiny_hf.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "out").mkdir()
    write_edited(open_checkpoint(folder), {}, tmp_path / "out")
    expected = CLIPModel.from_pretrained(tiny_hf)
    found, said = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said[word] for word in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = {"input_ids": torch.tensor([[1, 5, 9, 2]]), "pixel_values": torch.rand(1, 3, 64, 64)}
    with torch.no_grad():  # of copies that torch has placed: products round by where in memory a weight lies
        ours, theirs = deepcopy(found)(**inputs), deepcopy(expected)(**inputs)
    assert torch.equal(ours.text_embeds, theirs.text_embeds)
    assert torch.equal(ours.image_embeds, theirs.image_embeds)
    kept = expected.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in found.state_dict().items())
    model = uwm.load(tmp_path / "out")
    assert torch.equal(model.module.state_dict()["text_projection.weight"], state["text_projection.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_never_all_in_memory(tmp_path, suffix):
    big = {f"big.{n}": torch.full((4_000_000,), float(n)) for n in range(12)}  # 16 MB each
    sharded(tmp_path / "in", hf_state() | big, suffix)
    (tmp_path / "out").mkdir()
    code = (
        "import resource, sys; from pathlib import Path; from uwm.checkpoint import open_checkpoint, write_edited\n"
        "import concurrent.futures.thread\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_edited(open_checkpoint(sys.argv[1]), {}, Path(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 90_000  # kB, of 192 MB


# ---------------------------------------------------------------- what is wrong with shards


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(
    "name",
    ["../x{}", "/etc/x{}", "sub/x{}", "C:\\x{}", "\\\\host\\x{}", "a\0{}", "a\n{}", "", "{}\n", ".other", "..{}/x{}"],
)
def test_a_shard_elsewhere_is_refused_and_not_opened(tmp_path, suffix, name):
    weight_map = sharded(tmp_path / "in", hf_state(), suffix)
    save_file(hf_state(), tmp_path / "x.safetensors")
    change_index(tmp_path / "in", weight_map=weight_map | {"logit_scale": name.replace("{}", suffix)})
    with pytest.raises(Refused, match=f"is not a plain {suffix} file name in this folder") as caught:
        open_checkpoint(tmp_path / "in")
    assert caught.value.exit_code == 3


def test_a_shard_of_the_other_kind_is_refused(tmp_path):
    weight_map = sharded(tmp_path / "in", hf_state())
    torch.save({"logit_scale": torch.ones(1)}, tmp_path / "in" / "x.bin")
    change_index(tmp_path / "in", weight_map=weight_map | {"logit_scale": "x.bin"})
    with pytest.raises(Refused, match=r"'x\.bin' is not a plain \.safetensors file name"):
        open_checkpoint(tmp_path / "in")


def test_a_shard_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    shard = next(iter(sharded(tmp_path / "in", hf_state()).values()))
    (tmp_path / "in" / shard).rename(tmp_path / "elsewhere")
    (tmp_path / "in" / shard).symlink_to("../elsewhere")
    with pytest.raises(Refused, match=f"'{shard}' is a link that leaves this folder; put the file itself there"):
        open_checkpoint(tmp_path / "in")


def test_shards_in_the_hub_s_cache_are_links_to_its_blobs(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f3a", tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    sharded(snapshot, hf_state())
    for n, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"{n}")
        path.symlink_to(f"../../blobs/{n}")
    assert open_checkpoint(snapshot).entries.keys() == hf_state().keys()


def test_shards_that_are_missing_or_odd_files_are_bad_input(tmp_path):
    shard = next(iter(sharded(tmp_path / "in", hf_state()).values()))
    (tmp_path / "in" / shard).rename(tmp_path / "in" / f"{shard}.incomplete")
    with pytest.raises(BadInput, match=rf"shard '{shard}' is missing \(a download seems unfinished: \.incomplete\)"):
        open_checkpoint(tmp_path / "in")
    os.mkfifo(tmp_path / "in" / shard)
    with pytest.raises(BadInput, match=f"shard '{shard}' is missing"):
        open_checkpoint(tmp_path / "in")
    (tmp_path / "in" / shard).unlink()
    (tmp_path / "in" / shard).symlink_to(shard)
    with pytest.raises(BadInput, match=f"shard '{shard}' is missing"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_f35_tensors_that_are_missing_extra_or_twice_are_bad_input(tmp_path, suffix):
    state, folder = hf_state(), tmp_path / "in"
    weight_map = sharded(folder, state, suffix)
    change_index(folder, weight_map=weight_map | {"promised": weight_map["logit_scale"]})
    with pytest.raises(BadInput, match="'promised' is missing here by the index"):
        open_checkpoint(folder)
    change_index(folder, weight_map={name: shard for name, shard in weight_map.items() if name != "logit_scale"})
    with pytest.raises(BadInput, match="'logit_scale' is not promised here by the index, or lies in two shards"):
        open_checkpoint(folder)


def test_f38_a_cut_shard_is_bad_input(tmp_path):
    for suffix in (".safetensors", ".bin"):
        shard = next(iter(sharded(tmp_path / suffix, hf_state(), suffix).values()))
        os.truncate(tmp_path / suffix / shard, (tmp_path / suffix / shard).stat().st_size - 5)
        with pytest.raises(BadInput, match=f"{shard}.*download it again"):
            open_checkpoint(tmp_path / suffix)


def test_a_stray_shard_and_a_wrong_size_are_warned_of(tmp_path, caplog):
    sharded(tmp_path / "in", hf_state(), total=7)
    (tmp_path / "in" / "model-00003-of-00003.safetensors").touch()
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(tmp_path / "in")
    said = [record.getMessage() for record in caplog.records]
    assert any("the index does not name them: model-00003-of-00003.safetensors" in line for line in said)
    assert any("the index says 7 bytes, the shards hold 3060" in line for line in said)
    assert checkpoint.side_files == ()


def test_shards_that_would_get_one_name_are_bad_input(tmp_path):
    weight_map = sharded(tmp_path / "in", hf_state(), ".bin", "pytorch_model")
    names = sorted(set(weight_map.values()))
    (tmp_path / "in" / names[1]).rename(tmp_path / "in" / names[0].removeprefix("pytorch_"))
    twin = {names[0]: names[0], names[1]: names[0].removeprefix("pytorch_")}
    change_index(tmp_path / "in", weight_map={tensor: twin[shard] for tensor, shard in weight_map.items()})
    with pytest.raises(BadInput, match="two shards would get one name as safetensors; rename one of them"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize(
    "text",
    ['{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', '{"weight_map": {}, "weight_map": {"a": "x"}}'],
)
def test_an_index_that_says_something_twice_is_bad_input(tmp_path, text):
    sharded(tmp_path / "in", hf_state())
    (tmp_path / "in" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadInput, match="not a shard index .a key stands there twice"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}',
     '{"weight_map": {"a": 1, "b": "c"}}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {}}', "[" * 100_000],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_f36_a_broken_index_is_bad_input(tmp_path, text):
    sharded(tmp_path / "in", hf_state())
    (tmp_path / "in" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadInput, match=r"model\.safetensors\.index\.json: not a shard index"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_index_with_a_byte_order_mark_is_read(tmp_path, suffix):
    sharded(tmp_path / "in", hf_state(), suffix)
    index = next((tmp_path / "in").glob("*.index.json"))
    index.write_text(index.read_text(), encoding="utf-8-sig")
    found = open_checkpoint(tmp_path / "in").state_dict()
    assert found.keys() == hf_state().keys()
    assert all(torch.equal(bits(found[name]), bits(tensor)) for name, tensor in hf_state().items())


# ---------------------------------------------------------------- what is no file


def test_pipes_in_the_place_of_files_do_not_hang(tmp_path, run_uwm):
    folder = hf_folder(tmp_path / "in")
    for name in (
        "model.safetensors",
        "config.json",
        "model.safetensors.index.json",
        "modules.json",
        "model_index.json",
    ):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    with pytest.raises(BadInput, match="no weights in this folder"):
        open_checkpoint(folder)
    save_file(hf_state(), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"no config\.json in this folder"):
        uwm.load(folder)
    code, _, said = run_uwm("inspect", "/dev/zero")
    assert (code, said) == (2, "uwm: error: /dev/zero: not a regular file\n")
