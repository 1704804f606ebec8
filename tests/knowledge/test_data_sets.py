"""Data sets by name and by folder, their prompts, and one clear line for each mistake."""

from __future__ import annotations

import pytest
from tiny_published import BUILDERS, paint, tree, write

from uwm.errors import BadInput
from uwm.knowledge import PUBLISHED, open_data_sets


@pytest.fixture
def folder(tmp_path):
    """Two classes of two pictures."""
    tree(tmp_path / "animals", ["0_cat", "1_dog"])
    write(tmp_path / "animals" / "classnames.txt", "cat\ndog\n")
    return tmp_path / "animals"


@pytest.mark.parametrize("spelling", ["eurosat", "EuroSAT", "Euro-SAT"])
def test_names_in_any_case(spelling, tmp_path):
    BUILDERS["eurosat"](tmp_path, None)
    assert list(open_data_sets([spelling], data_root=tmp_path)) == ["eurosat"]


def test_all(tmp_path, monkeypatch):
    for builder in BUILDERS.values():
        builder(tmp_path, monkeypatch)
    assert list(open_data_sets(["all"], data_root=tmp_path)) == list(PUBLISHED)


def test_a_name_goes_before_a_folder_and_a_path_is_a_folder(folder, tmp_path, monkeypatch):
    folder.rename(tmp_path / "dtd")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="--zero-shot dtd: say with --data-root"):
        open_data_sets(["dtd"])
    data = open_data_sets(["./dtd"])["dtd"]
    assert data.class_names == ("cat", "dog")
    assert data.odd == ()
    assert len(data) == 4


def test_unknown(tmp_path):
    with pytest.raises(BadInput, match="cifar11: no such folder, and no data set of that name; there are imagenet, "):
        open_data_sets(["cifar11"], data_root=tmp_path)


def test_two_of_one_name(folder):
    with pytest.raises(BadInput, match="another data set is called 'animals' too"):
        open_data_sets([str(folder), f"{folder}/."])


def test_class_names_that_do_not_fit(folder):
    (folder / "classnames.txt").write_text("cat\n")
    with pytest.raises(BadInput, match=r"classnames\.txt has 1 names for 2 class folders"):
        open_data_sets([str(folder)])
    (folder / "classnames.txt").write_bytes(b"caf\xe9\ndog")
    with pytest.raises(BadInput, match=r"classnames\.txt: not UTF-8 at byte 3"):
        open_data_sets([str(folder)])


def test_without_class_names_the_folders_name_their_classes(folder):
    (folder / "classnames.txt").unlink()
    first, second = sorted(path for path in folder.iterdir() if path.is_dir())
    first.rename(folder / "polar_bear")
    second.rename(folder / "a-cat")
    assert open_data_sets([str(folder)])["animals"].class_names == ("a cat", "polar bear")


@pytest.mark.parametrize("name", ["7", "n01440764"])
def test_folders_called_by_numbers_need_class_names(folder, name):
    (folder / "classnames.txt").unlink()
    next(path for path in folder.iterdir() if path.is_dir()).rename(folder / name)
    with pytest.raises(BadInput, match=rf"folder '{name}' has no name of a class; .*needs classnames\.txt, one name a"):
        open_data_sets([str(folder)])


def test_a_class_without_pictures(folder):
    (folder / "2_cow").mkdir()
    with pytest.raises(BadInput, match="not in ImageFolder form .*2_cow"):
        open_data_sets([str(folder)])


def test_a_damaged_picture_is_named(folder):
    (folder / "1_dog" / "0.jpg").write_bytes(b"<html>")
    data = open_data_sets([str(folder)])["animals"]
    with pytest.raises(BadInput, match=r"0\.jpg: not a picture"):
        data.read(2)


def test_a_damaged_picture_of_a_published_set_is_named(tmp_path, monkeypatch):
    BUILDERS["pets"](tmp_path, monkeypatch)
    path = tmp_path / "oxford-iiit-pet" / "images" / "american_bulldog_203.jpg"
    path.write_bytes(path.read_bytes()[:300])
    data = open_data_sets(["pets"], data_root=tmp_path)["pets"]
    with pytest.raises(BadInput, match="pets: picture 1 cannot be read"):
        data.read(1)


# ---------------------------------------------------------------- prompts


def test_prompts_of_a_folder(folder):
    assert open_data_sets([str(folder)])["animals"].templates == ("a photo of a {}.",)
    write(folder / "templates.txt", "a {}\n\nmany {}\n")
    assert open_data_sets([str(folder)])["animals"].templates == ("a {}",)
    assert open_data_sets([str(folder)], ensemble=True)["animals"].templates == ("a {}", "many {}")


def test_prompts_for_every_set(folder, tmp_path):
    BUILDERS["eurosat"](tmp_path, None)
    write(folder / "templates.txt", "a {}\n")
    write(tmp_path / "own.txt", "one {}\r\ntwo {}\r\n")
    sets = open_data_sets([str(folder), "eurosat"], data_root=tmp_path, templates=tmp_path / "own.txt", ensemble=True)
    assert [data.templates for data in sets.values()] == [("one {}", "two {}")] * 2


def test_a_prompt_without_a_place_for_the_name(folder):
    write(folder / "templates.txt", "a {}\na {0}\n")
    with pytest.raises(BadInput, match=r"templates\.txt: prompt 2, 'a \{0\}', has no \{\} for the class name"):
        open_data_sets([str(folder)])
    write(folder / "templates.txt", "\n")
    with pytest.raises(BadInput, match=r"templates\.txt: no prompt in it"):
        open_data_sets([str(folder)])


def test_prompts_that_are_not_there(folder, tmp_path):
    with pytest.raises(BadInput, match=r"nope\.txt: no such file"):
        open_data_sets([str(folder)], templates=tmp_path / "nope.txt")


def test_unsafe_classes(folder):
    paint(folder / "1_dog" / "more.png", 9)
    write(folder.parent / "unsafe_classes.txt", "dog\n")
    assert open_data_sets([str(folder)])["animals"].unsafe_classes == {"dog"}
