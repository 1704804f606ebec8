"""Every kind of input that is fuzzed, by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz import headers, kinds, pictures, texts, torch_archives
from fuzz.targets import Target

GROUPS: dict[str, Callable[[Path], list[Target]]] = {
    "headers": headers.targets,
    "torch": torch_archives.targets,
    "records": kinds.targets,
    "texts": texts.targets,
    "pictures": pictures.targets,
}


def every_target(root: Path) -> dict[str, Target]:
    """Name -> target, each with its valid files under a folder."""
    found = {}
    for name, make in GROUPS.items():
        folder = root / name
        folder.mkdir()
        found |= {target.name: target for target in make(folder)}
    return found
