"""What a set's files say, read strictly: JSON without doubtful keys, paths that stay in their folder."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BadInput, Refused

MAX_LINE = 1 << 20  # bytes
BOM = b"\xef\xbb\xbf"
SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(raw: bytes, where: str) -> Any:
    """Any JSON value in UTF-8, with or without a byte order mark. Raises BadInput with line and column."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(key for key, n in Counter(key for key, _ in items).items() if n > 1)
            raise BadInput(f"{where}: key {twice!r} occurs twice")
        return found

    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        whole = "file" if b"\n" in raw else "line"
        raise BadInput(f"{where}: not UTF-8 at byte {error.start} of the {whole}") from None
    except json.JSONDecodeError as error:
        place = f"{error.lineno}:{error.colno}" if b"\n" in raw else f"{error.colno}"
        raise BadInput(f"{where}:{place}: not valid JSON ({error.msg})") from None
    except (RecursionError, ValueError):
        raise BadInput(f"{where}: nested too deep, or a number far too long") from None


def read_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line of a file and its JSON object, line by line; empty lines are skipped.

    Raises BadInput for a line that is too long or something else.
    """
    with file.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE + 1):
            number += 1
            where = f"{file}:{number}"
            line = raw.removesuffix(b"\n").removeprefix(BOM if number == 1 else b"")
            if len(line) > MAX_LINE:
                raise BadInput(f"{where}: a line of {len(line) + _rest(stream)} bytes; the limit is {MAX_LINE}")
            if line.strip():
                yield number, _object(line, where)


def _rest(stream: BinaryIO) -> int:
    """How many bytes a line still has, which are not kept."""
    count = 0
    while part := stream.readline(MAX_LINE):
        count += len(part.removesuffix(b"\n"))
        if part.endswith(b"\n"):
            break
    return count


def _object(line: bytes, where: str) -> dict[str, Any]:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def short(value: Any) -> str:
    """A value as a message can hold it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def check_text(value: Any, key: str, where: str) -> str:
    """The value, shown to be a string that can be encoded. Raises BadInput."""
    if not isinstance(value, str):
        raise BadInput(f"{where}: {key!r} is {short(value)}, expected a string")
    if SURROGATE.search(value):
        raise BadInput(f"{where}: {key!r} holds half of a surrogate pair")
    return value


class ImageFolder:
    """The folder that the images of a set lie in. Each sub-folder is looked up once.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._inside: dict[str, bool] = {}  # sub-folder -> whether it lies in the root

    def image(self, name: str, where: str) -> Path:
        """The image's path. Raises Refused when it lies outside, BadInput when it is no file."""
        if "://" in name:
            raise Refused(f"{where}: {name!r} is a URL; pictures are read from the set's folder only")
        path = self.image_if_there(name, where)
        if path is None:
            raise BadInput(f"{where}: picture {name!r} does not exist")
        return path

    def image_if_there(self, name: str, where: str) -> Path | None:
        """The image's path; None where it is no file. Raises Refused when it lies outside."""
        path = self.root / name
        try:
            if "\0" in name or not self._holds(path, name):
                raise Refused(f"{where}: picture {name!r} lies outside of the set's folder")
            return path if path.is_file() else None
        except (OSError, RuntimeError) as error:  # a name too long, a loop of links
            raise BadInput(f"{where}: picture {short(name)} cannot be read ({short(str(error))})") from None

    def _holds(self, path: Path, name: str) -> bool:
        """Whether a path lies in the folder; only links need to be followed where its own folder does."""
        folder, last = os.path.split(name)
        if folder not in self._inside:
            self._inside[folder] = self._resolves(self.root / folder)
        plain = last not in ("", ".", "..") and not path.is_symlink()
        return self._inside[folder] if plain else self._resolves(path)

    def _resolves(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root.resolve())
