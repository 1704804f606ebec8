"""The backends that are installed, by their entry points; ours are found like anybody's."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ..errors import BadInput
from .protocol import Backend, TrainingSettings

GROUP = "uwm.backends"
PARTS = {"name": str, "source": str, "settings": TrainingSettings}


def find_backends() -> dict[str, Backend]:
    """Name -> backend, sorted, of every distribution with entry points in the group ``uwm.backends``.

    Raises:
        BadInput: Two have one name, or one cannot be imported or is no backend; it names the distribution.
    """
    found: dict[str, Backend] = {}
    owners: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _owner(entry))):
        if entry.name in owners:
            both = f"{owners[entry.name]} and {_owner(entry)}"
            raise BadInput(f"two backends are called {entry.name!r}, of {both}; uninstall one")
        owners[entry.name] = _owner(entry)
        found[entry.name] = _load(entry)
    return found


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unnamed distribution"


def _load(entry: EntryPoint) -> Backend:
    where = f"backend {entry.name!r} of {_owner(entry)} ({entry.value})"
    try:
        backend = entry.load()
    except Exception as error:  # foreign code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(f"{where} cannot be imported: {reason}; repair or uninstall {_owner(entry)}") from error
    for part, kind in PARTS.items():
        if not isinstance(getattr(backend, part, None), kind):
            raise BadInput(f"{where}: expected an attribute {part!r}, a {kind.__name__}; see uwm.backends.Backend")
    if not callable(getattr(backend, "objective", None)):
        raise BadInput(f"{where}: expected a method 'objective'; see uwm.backends.Backend")
    if backend.name != entry.name:
        raise BadInput(f"{where}: calls itself {backend.name!r}; its entry point must have the same name")
    return backend
