"""The backends that are installed, by their entry points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import plugins
from .protocol import Backend, TrainingSettings

GROUP = "uwm.backends"
PARTS = {"name": str, "source": str, "settings": TrainingSettings}


def find_backends() -> Mapping[str, Backend]:
    """Name -> backend, sorted, of every distribution with entry points in the group ``uwm.backends``.

    Raises:
        BadInput: On getting a backend: two have its name, or it cannot be imported or is no backend. A backend that
            nobody gets is not imported.
    """
    return plugins.Installed(GROUP, "backend", _lack)


def _lack(backend: Any) -> str | None:
    """What an object lacks to be a backend."""
    for part, kind in PARTS.items():
        if not isinstance(getattr(backend, part, None), kind):
            return f"expected an attribute {part!r}, a {kind.__name__}; see uwm.backends.Backend"
    if not callable(getattr(backend, "objective", None)):
        return "expected a method 'objective'; see uwm.backends.Backend"
    return None
