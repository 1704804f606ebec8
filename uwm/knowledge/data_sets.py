"""Zero-shot data sets by name or by folder: labelled pictures, class names and prompts, checked before the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from PIL import Image

from ..checkpoint.containment import demand_contained
from ..errors import BadInput
from ..models.kept import Source
from ..processes import in_order, several
from .pictures import Pictures, demand_no_way_out, image_folder, numbers_as_numbers, tell_classes, text_lines
from .published import PHOTO, PUBLISHED

ALL = "all"


@dataclass(frozen=True)
class DataSet:
    """Labelled pictures, and what classifying them by captions needs.

    Attributes:
        name: How figures name it.
        pictures: Picture and class number by index, read when asked for.
        class_names: By class number.
        templates: The prompts that are used, each with ``{}`` for the class name.
        unsafe_classes: Names of classes whose accuracy is also given apart.
        odd: What a reader of its figures should know, such as a copy that is not whole.
        place: The folder with its files; None where there are none.
    """

    name: str
    pictures: Pictures
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    unsafe_classes: frozenset[str] = frozenset()
    odd: tuple[str, ...] = ()
    place: Path | None = None
    _classes: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)  # of pictures read

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def prompts(self) -> list[str]:
        """Every class with every prompt, class by class."""
        return [template.replace("{}", name) for name in self.class_names for template in self.templates]

    def read(self, index: int) -> tuple[Image.Image, int]:
        """One RGB picture and its class number. Raises BadInput when the picture is damaged."""
        try:
            picture, target = self.pictures[index]
            self._classes[index] = int(target)
            return picture.convert("RGB"), int(target)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadInput(f"{self.name}: picture {index} cannot be read ({error})") from None

    @cached_property
    def sources(self) -> list[Source]:
        """What reads each picture."""
        return [Picture(self, index) for index in range(len(self))]

    @property
    def classes(self) -> list[int]:
        """The class number of each picture; pictures that no process has read so far are read."""
        known = self._classes
        for read in in_order([{**known}], f"classes of {self.name}") if several() else ():
            known |= read
        return [known[index] if index in known else self.read(index)[1] for index in range(len(self))]


@dataclass(frozen=True, eq=False)
class Picture:
    """Reads one picture of a data set when it is called."""

    data: DataSet
    index: int

    @property
    def called(self) -> tuple[str, int]:
        """The data set and the number."""
        return self.data.name, self.index

    def __call__(self) -> Image.Image:
        return self.data.read(self.index)[0]


def open_data_sets(
    references: Iterable[str],
    *,
    data_root: str | Path | None = None,
    templates: str | Path | None = None,
    ensemble: bool = False,
) -> dict[str, DataSet]:
    """Data sets for `zero_shot`, by the names under which figures are given.

    Args:
        references: Names of `PUBLISHED` in any case (``all`` for all of them), or folders: one sub-folder of pictures
            a class, ``classnames.txt`` with one name a line in the sub-folders' sorted order (as numbers where all of
            their names are numbers, as texts otherwise), and optionally ``templates.txt`` (prompts with ``{}``) and
            ``../unsafe_classes.txt`` (names whose accuracy is also given apart). A name goes before a folder;
            ``./cifar10`` is a folder.
        data_root: Where the named sets lie, each under `Published.folder`.
        templates: A file of prompts to use instead of the sets' own.
        ensemble: Use all prompts of a file, not its first line only.

    Raises:
        BadInput: Unknown, missing, not whole or not of its form; or two sets share a name.
        Refused: A link in a folder leads out of it.
    """
    prompts = None if templates is None else _templates(Path(templates), ensemble)
    opened: dict[str, DataSet] = {}
    for reference in _spelt_out(references):
        key = _key(reference)
        data = _folder(Path(reference), prompts, ensemble) if key is None else _published(key, data_root, prompts)
        if data.name in opened:
            raise BadInput(f"--zero-shot {reference}: another data set is called {data.name!r} too; rename one")
        opened[data.name] = data
    return opened


def _spelt_out(references: Iterable[str]) -> list[str]:
    return [name for reference in references for name in (PUBLISHED if reference.lower() == ALL else [reference])]


def _key(reference: str) -> str | None:
    """The name in the table, or None for a folder."""
    plain = {re.sub("[^a-z0-9]", "", key): key for key in PUBLISHED}
    key = None if re.search(r"[/\\]", reference) else plain.get(re.sub("[-_ ]", "", reference.lower()))
    if key is None and not Path(reference).is_dir():
        raise BadInput(f"--zero-shot {reference}: no such folder, and no data set of that name; there are "
                       f"{', '.join(PUBLISHED)}")  # fmt: skip
    return key


def _published(key: str, data_root: str | Path | None, prompts: tuple[str, ...] | None) -> DataSet:
    if data_root is None:
        raise BadInput(f"--zero-shot {key}: say with --data-root (or UWM_DATA_ROOT) where the data sets lie")
    row = PUBLISHED[key]
    pictures, names = row.open(key, Path(data_root))
    odd = [
        f"{key}: {found} {what}, a whole copy has {whole}"
        for what, found, whole in (("pictures", len(pictures), row.pictures), ("classes", len(names), row.classes))
        if found != whole
    ]
    odd += _one_name(key, names)
    place = Path(data_root) / row.folder
    return DataSet(key, pictures, tuple(names), prompts or (row.template,), odd=tuple(odd), place=place)


def _folder(folder: Path, prompts: tuple[str, ...] | None, ensemble: bool) -> DataSet:
    for own in (folder / "classnames.txt", folder / "templates.txt"):
        demand_contained(own, folder)
    pictures = image_folder(folder, numbers_as_numbers)
    demand_no_way_out((Path(file) for file, _ in pictures.samples), folder)
    named = (folder / "classnames.txt").is_file()
    names = text_lines(folder / "classnames.txt") if named else _folder_names(folder, pictures.classes)
    if len(names) != len(pictures.classes):
        raise BadInput(f"{folder}: classnames.txt has {len(names)} names for {len(pictures.classes)} class folders")
    tell_classes(folder, pictures.classes, names)
    if prompts is None:
        own = folder / "templates.txt"
        prompts = _templates(own, ensemble) if own.is_file() else (PHOTO,)
    listed = folder.parent / "unsafe_classes.txt"
    demand_contained(listed, folder.parent)
    unsafe = frozenset(text_lines(listed)) if listed.is_file() else frozenset()
    name = folder.resolve().name
    odd = (*(_counted_otherwise(name, pictures.classes) if named else ()), *_one_name(name, names))
    return DataSet(name, pictures, tuple(names), prompts, unsafe, odd, folder)


def _folder_names(folder: Path, classes: Sequence[str]) -> list[str]:
    """Class names from the folders' names. Raises BadInput for folders called by numbers or WordNet's identifiers."""
    if nameless := [name for name in classes if re.fullmatch(r"n?\d+", name)]:
        raise BadInput(
            f"{folder}: the class folder {nameless[0]!r} has no name of a class; a zero-shot folder needs "
            "classnames.txt, one name a line, or folders that are called by their classes"
        )
    return [re.sub(r"[_-]+", " ", name).strip() or name for name in classes]


def _one_name(data_set: str, names: Sequence[str]) -> Iterator[str]:
    """Classes that a model cannot tell apart, since their prompts are the same."""
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{data_set}: {count} classes are called {name!r}; they count as one"


def _counted_otherwise(data_set: str, folders: Sequence[str]) -> Iterator[str]:
    """Folders that a person would count in another order; which one classnames.txt has cannot be known."""

    def parts(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

    if all(name.isdecimal() for name in folders):
        return
    for before, after in pairwise(folders):
        if parts(before) > parts(after):
            yield (
                f"{data_set}: class folders are sorted as texts, {before!r} before {after!r}, and the lines of "
                "classnames.txt are taken in that order; -v shows which folder got which name"
            )
            return


def _templates(path: Path, ensemble: bool) -> tuple[str, ...]:
    lines = text_lines(path)
    if not lines:
        raise BadInput(f"{path}: no prompt in it; expected one a line, such as {PHOTO!r}")
    for number, line in enumerate(lines, 1):
        if "{}" not in line:
            raise BadInput(f"{path}: prompt {number}, {line!r}, has no {{}} for the class name")
    return tuple(lines) if ensemble else (lines[0],)
