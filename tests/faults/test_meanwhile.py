"""What happens to an output while a job works on it: what appears there stays, and what is written is whole."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from terminal import bytes_below, done

from uwm.errors import ResourceFault
from uwm.outputs import MANIFEST, output_file, output_folder, put_file
from uwm.report import html_report

PAGE = html_report({"model": {"name": "m"}, "results": {}, "differences": {}})


def always(path):
    return True


def appear_file(place):
    place.write_text("mine")


def appear_folder(place):
    place.mkdir()
    (place / "mine").write_text("mine")


def appear_empty(place):
    place.mkdir()


def appear_ours(place):
    place.mkdir()
    (place / MANIFEST).write_text("{}")


def write_folder(out, meanwhile, overwrite=False):
    """Write an output; `meanwhile` gets the output, and the temporary folder."""
    with output_folder(out, overwrite=overwrite) as place, place.make() as folder:
        (folder / "weights").write_text("late")
        meanwhile(out, folder)


def write_file(out, meanwhile, overwrite=False, ours=always):
    with output_file(out, [], overwrite, ours) as file:
        meanwhile(out)
        file.write(b"late")


APPEARED = "appeared while the work went on, so it is not replaced"


@pytest.mark.parametrize("appear", [appear_file, appear_folder, appear_empty, appear_ours])
def test_f72_what_appeared_at_the_output_meanwhile_stays(appear, out, tmp_path):
    with pytest.raises(ResourceFault, match=APPEARED):
        write_folder(out, lambda place, _: appear(place))
    appear(tmp_path / "same")
    assert out.is_dir() == (tmp_path / "same").is_dir()
    assert bytes_below(out) == bytes_below(tmp_path / "same")
    assert sorted(os.listdir(tmp_path)) == ["out", "same"]


def test_f72_what_is_foreign_at_the_output_meanwhile_stays_with_overwrite_too(out):
    def replace(place, _):
        shutil.rmtree(place)
        appear_folder(place)

    appear_ours(out)
    with pytest.raises(ResourceFault, match=APPEARED):
        write_folder(out, replace, overwrite=True)
    assert (out / "mine").read_text() == "mine"


def test_f72_a_file_that_appeared_meanwhile_stays(out):
    with pytest.raises(ResourceFault, match=APPEARED):
        write_file(out, appear_file)
    with pytest.raises(ResourceFault, match=APPEARED):
        write_file(out.with_name("other"), appear_file, overwrite=True, ours=lambda path: False)
    for path in (out, out.with_name("other")):
        assert path.read_text() == "mine"
    assert sorted(os.listdir(out.parent)) == ["other", "out"]


@pytest.mark.parametrize("links", [True, False])
def test_f72_a_file_that_appears_at_the_last_moment_stays(links, out, monkeypatch):
    """After it was looked for; without hard links it is looked for a second time."""
    real, looks = os.path.lexists, []

    def blind_once(path):
        looks.append(path)
        return real(path) and looks.count(path) > 1

    def appear(place):
        appear_file(place)
        looks.clear()
        monkeypatch.setattr(os.path, "lexists", blind_once)

    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(ResourceFault, match=APPEARED):
        write_file(out, appear)
    assert out.read_text() == "mine"


def unsupported(*_):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_f74_a_file_system_without_hard_links_will_do(out, monkeypatch):
    monkeypatch.setattr(os, "link", unsupported)
    write_file(out, lambda _: None)
    assert out.read_bytes() == b"late"


def lose(folder):
    shutil.rmtree(folder)


def lose_and_write_on(folder):
    shutil.rmtree(folder)
    put_file(folder / MANIFEST, b"{}")


def lose_weights(folder):
    put_file(folder / MANIFEST, b'{"output_sha256": {"weights": "0"}}')
    (folder / "weights").unlink()


@pytest.mark.parametrize("how", [lose, lose_and_write_on, lose_weights])
def test_a_temporary_folder_that_vanished_is_an_error_and_no_output(how, out):
    with pytest.raises(ResourceFault, match="its temporary folder .* was removed meanwhile; nothing kept"):
        write_folder(out, lambda _, folder: how(folder))
    assert os.listdir(out.parent) == []


@pytest.fixture
def synced(monkeypatch):
    """The inodes that the disk was asked to have."""
    real, inodes = os.fsync, set()

    def watch(descriptor):
        inodes.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    return inodes


def test_f68_every_file_of_the_output_is_synced(run_uwm, tiny_hf, made, out, synced):
    done(run_uwm("apply", tiny_hf, made / "patch.safetensors", "-o", out))
    there = [out, out.parent, *out.rglob("*")]
    assert [str(path) for path in there if path.stat().st_ino not in synced] == []


@pytest.mark.parametrize("write", [lambda path: put_file(path, b"x"), lambda path: write_file(path, lambda _: None)])
def test_f68_a_file_and_its_name_are_synced(write, tmp_path, synced):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "file")
    assert {path.stat().st_ino for path in (tmp_path / "in", tmp_path / "in" / "file")} <= synced


def test_f74_a_file_system_without_sync_is_told_of(tmp_path, monkeypatch, caplog):
    def invalid(_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", invalid)
    put_file(tmp_path / "file", b"x")
    assert "cannot sync" in caplog.text


def test_f71_missing_folders_are_made_and_go_again_where_the_work_fails(out):
    def fail(place):
        assert place.parent.is_dir()
        raise KeyError

    with pytest.raises(KeyError):
        write_file(out / "a" / "b", fail)
    assert not out.exists()
    write_file(out / "a" / "b", lambda _: None)
    assert [*out.rglob("*")] == [out / "a", out / "a" / "b"]
