"""Nobody who can write to a folder of the input or the output makes us read or write elsewhere."""

from __future__ import annotations

import os
import secrets
import shutil
import sys

import pytest
from distributions import plug_in  # noqa: F401
from PIL import Image
from random_patches import patch_of
from terminal import done, refused

import uwm
from uwm.backends import find_backends
from uwm.backends.state import load_state
from uwm.checkpoint import open_checkpoint, write_edited
from uwm.checkpoint.containment import is_contained
from uwm.comparison.methods import parse_methods
from uwm.editing.editors import find_editor, find_editors
from uwm.errors import BadInput, Refused, ResourceFault
from uwm.knowledge import open_data_sets
from uwm.outputs import output_folder, put_file, temporary


@pytest.fixture
def secret(tmp_path):
    """A file of the user's that nobody shall get."""
    place = tmp_path / "elsewhere" / "secret"
    place.parent.mkdir()
    place.write_text("password")
    return place


# ---------------------------------------------------------------- side files


@pytest.mark.parametrize("place", ["notes.txt", "tokenizer/more.json"])
def test_f34_a_side_file_that_links_out_of_its_folder_is_not_copied(place, run_uwm, source, secret, tmp_path, out):
    (source / place).symlink_to(secret)
    patch_of(source).save(tmp_path / "patch")
    for words in (
        ("apply", source, tmp_path / "patch"),
        ("revert", source, tmp_path / "patch"),
        ("edit", source, "--calib", tmp_path / "none"),
        ("finetune", source, "--calib", tmp_path / "none", "--method", "safe-clip"),
    ):
        refused(run_uwm(*words, "-o", out), 3, f"{source / place}: is a link that leaves {source}")
    assert not out.exists()


def test_f34_a_side_file_that_becomes_a_link_meanwhile_is_not_copied(source, secret, tmp_path):
    checkpoint = open_checkpoint(source)
    (source / "config.json").unlink()
    (source / "config.json").symlink_to(secret)
    (tmp_path / "to").mkdir()
    with pytest.raises(Refused, match=r"config\.json: is a link that leaves"):
        write_edited(checkpoint, {}, tmp_path / "to")
    assert not (tmp_path / "to" / "config.json").exists()


def test_f39_links_within_the_folder_and_into_the_hub_s_blobs_are_copied(source, tmp_path, out):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(source, snapshot)
    blobs.mkdir()
    (snapshot / "config.json").rename(blobs / "77")
    (snapshot / "config.json").symlink_to("../../blobs/77")
    (snapshot / "vocab.json").symlink_to("tokenizer/vocab.json")
    uwm.apply(snapshot, patch_of(source), output=out)
    assert is_contained(snapshot / "config.json", snapshot / "tokenizer")  # as of a pipeline's text encoder
    assert not is_contained(tmp_path / "models--a--b" / "refs" / "main", snapshot)
    for name in ("config.json", "vocab.json"):
        assert not (out / name).is_symlink()
        assert (out / name).read_bytes() == (snapshot / name).read_bytes()


# ---------------------------------------------------------------- temporary files


def test_a_link_under_the_name_of_a_temporary_file_is_not_followed(run_uwm, made, secret, tmp_path, out, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0" * 16)
    planted = out.parent / f".uwm-{'0' * 16}-out"
    planted.symlink_to(secret)
    found = run_uwm("select", made / "scores.safetensors", "-o", out)
    refused(found, 4, "could not write: File exists")
    with pytest.raises(ResourceFault, match="File exists"), output_folder(out) as place, place.make():
        pass
    assert secret.read_text() == "password"
    assert not out.exists()


def test_names_of_temporary_files_cannot_be_guessed(tmp_path):
    found = {temporary.temporary_beside(tmp_path / "out").name for _ in range(100)}
    assert len(found) == 100
    assert all(temporary.TEMPORARY.fullmatch(name)["name"] == "out" for name in found)


def test_what_links_elsewhere_is_not_removed_as_left_over(tmp_path, secret, out):
    (tmp_path / f".uwm-{'0' * 16}-out").symlink_to(secret.parent)
    (tmp_path / f".uwm-old-{'0' * 16}-out").symlink_to(secret.parent)
    with output_folder(out):
        assert not out.exists()  # nor brought back as an earlier output
    assert secret.read_text() == "password"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_made_is_neither_removed_nor_brought_back(tmp_path, out):
    for name in (f".uwm-{'0' * 16}-out", f".uwm-old-{'0' * 16}-out"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 12345, 12345)
    before = sorted(os.listdir(tmp_path))
    with output_folder(out):
        assert not out.exists()
    assert sorted(os.listdir(tmp_path)) == before


def test_a_state_of_training_that_is_a_link_is_refused_before_the_training(tmp_path, secret):
    (tmp_path / "out.training.safetensors").symlink_to(tmp_path / "nothing")
    with pytest.raises(BadInput, match="is a link, which uwm never makes; remove it"):
        load_state(tmp_path / "out.training.safetensors", "key", {})


def test_a_file_within_a_folder_of_ours_is_not_written_through_a_link(tmp_path, secret):
    (tmp_path / "file").symlink_to(secret)
    with pytest.raises(ResourceFault, match="a link or no regular file"):
        put_file(tmp_path / "file", b"x")
    assert secret.read_text() == "password"


# ---------------------------------------------------------------- zero-shot folders


@pytest.fixture
def classes(tmp_path):
    """A zero-shot folder of two classes, and images of somebody else."""
    folder = tmp_path / "pets" / "seen"
    for place in (folder / "cat", folder / "dog", tmp_path / "private" / "more"):
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "a.png")
    (folder / "classnames.txt").write_text("cat\ndog\n")
    return folder


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/b.png", "private/more/a.png"),
        ("cat/more", "private/more"),
        ("elk", "private/more"),
        ("templates.txt", "private/words"),
        ("classnames.txt", "private/words"),
        ("../unsafe_classes.txt", "private/words"),
    ],
)
def test_f66_links_out_of_a_zero_shot_folder_are_refused(link, target, classes, tmp_path):
    (tmp_path / "private" / "words").write_text("cat {}\ndog {}\n" if link == "templates.txt" else "cat\ndog\n")
    (classes / link).unlink(missing_ok=True)
    (classes / link).symlink_to(tmp_path / target)
    if link == "elk":
        (classes / "classnames.txt").write_text("cat\ndog\nelk\n")
    with pytest.raises(Refused, match=rf"{os.path.basename(link)}: is a link that leaves"):
        open_data_sets([str(classes)])


def test_f66_links_within_a_zero_shot_folder_are_followed(classes, tmp_path):
    (classes / "dog" / "b.png").symlink_to("../cat/a.png")
    (tmp_path / "link").symlink_to(classes)
    assert len(open_data_sets([str(classes)])["seen"]) == 3
    assert len(open_data_sets([str(tmp_path / "link")])["seen"]) == 3


# ---------------------------------------------------------------- plug-ins

MARKED = "import sys; sys.zz_was_imported = True; raise RuntimeError('imported')"


@pytest.fixture
def untouched(monkeypatch):
    monkeypatch.setattr(sys, "zz_was_imported", False, raising=False)
    yield
    assert not sys.zz_was_imported


def test_a_backend_of_others_is_imported_only_when_it_is_asked_for(plug_in, run_uwm, untouched, tmp_path, tiny_hf):  # noqa: F811
    plug_in("uwm.backends", "evil-plug", "zz-evil", MARKED)
    assert "zz-evil" in find_backends()
    assert find_backends()["safe-clip"].name == "safe-clip"
    parse_methods(["safe-clip,uwm,repel"], find_backends())
    refused(run_uwm("finetune", tiny_hf, "--method", "no", "--calib", tmp_path, "-o", tmp_path / "x"), 2, "zz-evil")
    done(run_uwm("compare", "--help"))
    done(run_uwm("finetune", "--help"))


@pytest.mark.parametrize(("group", "name"), [("uwm.backends", "safe-clip"), ("uwm.editors", "repel")])
def test_a_plug_in_does_not_shadow_a_name_of_ours(group, name, plug_in, untouched, caplog):  # noqa: F811
    ours = (find_backends if group == "uwm.backends" else find_editors)()[name]
    plug_in(group, "evil-plug", name, MARKED)
    plug_in(group, "zz-evil-plug", name, MARKED)
    assert (find_backends if group == "uwm.backends" else find_editors)()[name] is ours
    assert f"evil-plug: its {'backend' if group == 'uwm.backends' else 'editor'} '{name}' is left out" in caplog.text


def test_a_backend_does_not_shadow_an_editor_of_ours_in_comparisons(plug_in, untouched):  # noqa: F811
    plug_in("uwm.backends", "evil-plug", "repel", MARKED)
    assert "repel" not in find_backends()
    method = parse_methods(["repel"], find_backends())[1]
    assert method.stages[0].editor is find_editor("repel")


def test_a_distribution_that_calls_itself_uwm_but_lies_elsewhere_is_not_ours(plug_in, untouched, tmp_path):  # noqa: F811
    from importlib.metadata import EntryPoint

    from uwm.plugins import is_ours

    folder = plug_in("uwm.backends", "evil-plug", "zz-evil", MARKED)
    about = folder / "evil_plug-1.0.dist-info"
    from importlib.metadata import Distribution

    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: uwm\nVersion: 99\n")
    entry = EntryPoint("safe-clip", "evil_plug:BACKEND", "uwm.backends")._for(Distribution.at(about))
    assert entry.dist.name == "uwm"
    assert not is_ours(entry)
