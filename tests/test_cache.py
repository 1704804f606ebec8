"""The embedding cache: what its key depends on, and that it never gives wrong embeddings or an error."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import uwm
from uwm.cache import EmbeddingCache, embedding_key
from uwm.embedding import embed

KEY = "0" * 64


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture
def calib(tiny_set):
    return uwm.read_calibration(tiny_set, split="test")


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache")


def tensors(rows=4):
    return {"safe_text": torch.arange(rows * 3.0).reshape(rows, 3), "unsafe_text": torch.ones(rows, 3)}


def entry(cache):
    return next(cache.folder.iterdir())


# ---------------------------------------------------------------- the key


def test_the_key_is_the_same_for_the_same_things(model, tiny_hf, calib, tiny_set, tmp_path):
    shutil.copytree(tiny_hf, tmp_path / "model")
    shutil.copytree(tiny_set, tmp_path / "set")
    other = uwm.read_calibration(tmp_path / "set", split="test")
    assert embedding_key(uwm.load(tmp_path / "model"), other, 64) == embedding_key(model, calib, 64)


def weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    held = load_file(file)
    held["text_model.final_layer_norm.bias"][5] += 1e-6
    save_file(held, file, metadata={"format": "pt"})


def side_file(name: str, change) -> object:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def exchange_two_words(tokenizer: dict) -> None:
    """Exchange the numbers of two tokens."""
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["dog</w>"], vocabulary["a</w>"] = vocabulary["a</w>"], vocabulary["dog</w>"]


CHANGES = {
    "one weight": weights,
    "mean": side_file("preprocessor_config.json", lambda c: c["image_mean"].__setitem__(0, 0.4)),
    "resampling": side_file("preprocessor_config.json", lambda c: c.__setitem__("resample", 2)),
    "crop": side_file("preprocessor_config.json", lambda c: c["size"].__setitem__("shortest_edge", 65)),
    "tokenizer": side_file("tokenizer.json", exchange_two_words),
    "heads": side_file("config.json", lambda c: c["vision_config"].__setitem__("num_attention_heads", 4)),
    "activation": side_file("config.json", lambda c: c["text_config"].__setitem__("hidden_act", "gelu")),
    "epsilon": side_file("config.json", lambda c: c["text_config"].__setitem__("layer_norm_eps", 1e-3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_key_follows_the_model(change, model, tiny_hf, calib, tmp_path):
    shutil.copytree(tiny_hf, tmp_path / "model")
    change(tmp_path / "model")
    assert embedding_key(uwm.load(tmp_path / "model"), calib, 64) != embedding_key(model, calib, 64)


def test_the_key_follows_dtype_patch_and_batch_size(model, tiny_hf, calib):
    patch = uwm.select(uwm.score(model, uwm.read_calibration(calib.root, split="calib")))
    keys = [embedding_key(model, calib, 64), embedding_key(model, calib, 8)]
    keys.append(embedding_key(uwm.load(tiny_hf, dtype="bfloat16"), calib, 64))
    with uwm.patched(model, patch):
        keys.append(embedding_key(model, calib, 64))
    assert len(set(keys)) == 4
    assert embedding_key(model, calib, 64) == keys[0]


def test_the_key_follows_the_set(model, calib, tiny_set, tmp_path):
    first, *rest = calib.pairs
    sets = [replace(calib, pairs=pairs) for pairs in ((*rest, first), tuple(rest))]
    sets.append(replace(calib, pairs=(replace(first, safe_text=f"{first.safe_text} "), *rest)))
    shutil.copytree(tiny_set, tmp_path / "set")
    picture = tmp_path / "set" / "images" / first.safe_image.name
    data = bytearray(picture.read_bytes())
    data[-20] ^= 1
    picture.write_bytes(data)
    sets.append(uwm.read_calibration(tmp_path / "set", split="test"))
    keys = {embedding_key(model, pairs, 64) for pairs in (calib, *sets)}
    assert len(keys) == 1 + len(sets)


# ---------------------------------------------------------------- the folder


def test_embeddings_come_back_bit_for_bit_and_without_the_model(model, calib, cache, monkeypatch):
    made = embed(model, calib, cache=cache)
    monkeypatch.setattr(import_module("uwm.embedding"), "embed_tower", None)  # would fail if it were called
    again = embed(model, calib, cache=cache)
    assert all(torch.equal(vars(made)[name], vars(again)[name]) for name in vars(made))
    assert uwm.evaluate(model, calib, cache=cache).pairs == 8


def test_only_embeddings_are_stored(model, calib, cache):
    embed(model, calib, cache=cache)
    content = entry(cache).read_bytes()
    assert len([*cache.folder.iterdir()]) == 1
    assert len(content) < 4 * 8 * 24 * 4 + 2000
    for pair in calib.pairs:
        assert (pair.safe_text or "").encode() not in content


def test_another_weight_is_never_answered_from_the_cache(model, tiny_hf, calib, cache, tmp_path):
    embed(model, calib, cache=cache)
    shutil.copytree(tiny_hf, tmp_path / "model")
    weights(tmp_path / "model")
    other = uwm.load(tmp_path / "model")
    assert torch.equal(embed(other, calib, cache=cache).safe_text, embed(other, calib).safe_text)


def damages():
    def flip(path):
        data = bytearray(path.read_bytes())
        data[-3] ^= 16
        path.write_bytes(data)

    yield "one bit", flip
    yield "cut", lambda path: path.write_bytes(path.read_bytes()[:-7])
    yield "empty", lambda path: path.write_bytes(b"")
    yield "foreign", lambda path: path.write_bytes(b"<html>")
    yield (
        "of another key",
        lambda path: (
            EmbeddingCache(path.parent).put("1" * 64, tensors(2))
            or os.replace(path.with_name("1" * 64 + ".safetensors"), path)
        ),
    )
    yield "a folder", lambda path: (path.unlink(), path.mkdir())


@pytest.mark.parametrize(("name", "damage"), [*damages()], ids=[name for name, _ in damages()])
def test_what_is_damaged_is_ignored_and_rewritten(name, damage, cache):
    cache.put(KEY, tensors())
    damage(entry(cache))
    assert cache.get(KEY) is None
    if name != "a folder":
        cache.put(KEY, tensors())
        assert torch.equal(cache.get(KEY)["safe_text"], tensors()["safe_text"])


def test_a_folder_that_cannot_be_made_or_read_is_no_error(model, calib, tmp_path):
    (tmp_path / "file").touch()
    cache = EmbeddingCache(tmp_path / "file" / "cache")
    assert cache.get(KEY) is None
    cache.put(KEY, tensors())
    assert len(embed(model, calib, cache=cache).safe_text) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_ones_used_longest_ago_go(cache):
    cache.put(KEY, tensors(40))
    cache = replace(cache, max_bytes=3 * entry(cache).stat().st_size + 100)
    for name in ("mine.safetensors", f".uwm-{16 * '0'}-{KEY}.safetensors"):
        (cache.folder / name).write_bytes(bytes(2000))
        os.utime(cache.folder / name, (1, 1))
    for number in range(3):
        cache.put(str(number) * 64, tensors(40))
        os.utime(cache.folder / f"{str(number) * 64}.safetensors", (number + 10, number + 10))
    assert cache.get("0" * 64) is not None  # used now
    for number in range(3, 5):
        cache.put(str(number) * 64, tensors(40))
        os.utime(cache.folder / f"{str(number) * 64}.safetensors", (2e9 + number, 2e9 + number))
    kept = {path.name[0] for path in cache.folder.iterdir()}
    assert kept == {"0", "3", "4", "m"}
    assert sum(path.stat().st_size for path in cache.folder.glob("?" * 64 + ".*")) <= cache.max_bytes


def test_an_entry_too_big_is_not_kept(cache):
    replace(cache, max_bytes=500).put(KEY, tensors(40))
    assert not cache.folder.exists()


def test_where_it_lies(monkeypatch, tmp_path):
    for name in ("UWM_EMBEDDINGS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EmbeddingCache.default().folder == tmp_path / ".cache" / "uwm" / "embeddings"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert EmbeddingCache.default().folder == tmp_path / ".cache" / "uwm" / "embeddings"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert EmbeddingCache.default().folder == tmp_path / "xdg" / "uwm" / "embeddings"
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path / "own"))
    assert EmbeddingCache.default().folder == tmp_path / "own" / "embeddings"


def test_no_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("UWM_EMBEDDINGS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert EmbeddingCache.default() is None
