"""Work of a run, kept in the user's cache while the run lasts, so that the same run goes on where it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import records
from .errors import UwmError
from .processes import from_first, is_first
from .schema import ANYTHING, COUNT, SHA256, TEXT, Forms, TensorForm, keyed, listed, mapped
from .signed import Signer, cache_folder

if TYPE_CHECKING:
    import torch

EVERY = 60.0  # seconds of work that a kill may cost
SOON = 1 / 6  # of that, after which the end of a pass, or of a set, is kept
SHARE = 0.05  # of the time that keeping it may take
MAX_BYTES = 4 << 30  # of all runs together
MAX_AGE = 14 * 24 * 3600.0  # seconds after which a run that nobody went on with is forgotten
RUN, ENTRY = re.compile("[0-9a-f]{64}"), re.compile(r"(\.uwm-[0-9a-f]{16}-)?[0-9a-f]{64}\.safetensors")
_begun: dict[Path, float] = {}  # the folder of a run of this process that has not come to its end -> when it began

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def is_kept(since: float = 0.0) -> bool:
    """Whether a run of this process, begun after a time of `time.monotonic`, has left something to go on with."""
    return any(begun >= since and _holds_work(folder) for folder, begun in _begun.items())


@dataclass(frozen=True)
class Entry:
    """Some work that was done.

    Attributes:
        tensors: By name.
        about: JSON that describes them.
    """

    tensors: Mapping[str, torch.Tensor]
    about: Any = None


class Unfinished:
    """What a run has done so far, under names. It never raises: what cannot be read is not there, and is done anew.

    Every entry has a keyed hash with a secret of the user, see `uwm.signed`. Of several processes the first reads and
    writes, and all get what it read.

    Args:
        folder: Of all runs.
        run: sha256 over all that decides what the run does.
        every: Seconds between two times of writing.

    Attributes:
        goes_on: Whether an earlier run of the same has left something.
    """

    def __init__(self, folder: Path, run: str, every: float | None = None) -> None:
        self._folder, self._run = folder, run
        self._every = EVERY if every is None else every
        self._process = os.getpid()
        self._pause = self._every
        self._written = time.monotonic()
        self._asked: float | None = None
        self._waiting: dict[str, Entry] = {}
        self._number = 0
        _begun[self._own] = self._written
        self.goes_on: bool = from_first(lambda: _holds_work(self._own), "an earlier run")

    @classmethod
    def of(cls, run: str) -> Unfinished | None:
        """In the user's cache; None where there is no home."""
        base = cache_folder()
        return None if base is None else cls(base / "unfinished", run)

    def get(self, name: str) -> Entry | None:
        """What was kept under a name (a sha256); None where there is nothing. Every process of a group asks alike."""
        return from_first(lambda: self._read(name), "kept work") if self.goes_on else None

    def next_number(self) -> int:
        """How many pieces of work were begun before: the same run begins them in the same order."""
        self._number += 1
        return self._number - 1

    def is_due(self, part: float = 1.0) -> bool:
        """Whether this process should write now, after so large a part of the usual pause."""
        mine = is_first() and os.getpid() == self._process  # not one that was forked for a trial
        self._asked = time.monotonic()
        return mine and self._asked - self._written >= part * self._pause

    def put(self, name: str, entry: Entry) -> None:
        """Keep work under a name, in place of what was kept there, and what waited for that."""
        begun = time.monotonic() if self._asked is None else self._asked  # what is kept was gathered since then
        self._waiting[name] = entry
        while self._waiting:
            self._write(*self._waiting.popitem())
        self._written = time.monotonic()
        self._pause, self._asked = max(self._every, (self._written - begun) / SHARE), None

    def later(self, name: str, entry: Entry) -> None:
        """Keep small work with the next that is kept."""
        if is_first():
            self._waiting[name] = entry

    def remove(self) -> None:
        """The run is done."""
        self._waiting.clear()
        if is_first():
            with contextlib.suppress(OSError):
                for path in _entries(self._own):
                    path.unlink()
                self._own.rmdir()
        _begun.pop(self._own, None)

    @property
    def _own(self) -> Path:
        return self._folder / self._run

    @property
    def _signer(self) -> Signer:
        return Signer("unfinished", FORM, self._folder.with_name(f"{self._folder.name}.key"))

    def _key(self, name: str) -> str:
        return hashlib.sha256(f"{self._run} {name}".encode()).hexdigest()

    def _read(self, name: str) -> Entry | None:
        try:
            tensors, about = self._signer.read(self._own / f"{name}.safetensors", self._key(name))
        except (UwmError, OSError) as error:
            logger.info("no work to go on with: %s", error)
            return None
        return Entry(tensors, about["about"])

    def _write(self, name: str, entry: Entry) -> None:
        if sum(tensor.nbytes for tensor in entry.tensors.values()) > MAX_BYTES // 2:
            logger.info("too large to be kept for a run that goes on")
            return
        forms = {key: [str(tensor.dtype)[6:], *tensor.shape] for key, tensor in entry.tensors.items()}
        try:
            about = {"about": entry.about, "tensors": forms}
            self._signer.write(self._own / f"{name}.safetensors", self._key(name), entry.tensors, about)
            self._shrink()
        except (UwmError, OSError) as error:
            logger.info("work not kept: %s", error)

    def _shrink(self) -> None:
        """Remove what is old, and what was written longest ago where all is too much; never a file that is not ours."""
        runs = [path for path in self._folder.iterdir() if RUN.fullmatch(path.name)]
        found = [(path.stat(), path) for run in runs for path in _entries(run)]
        total, now = 0, time.time()
        for about, path in sorted(found, key=lambda one: one[0].st_mtime, reverse=True):
            total += about.st_size
            if total > MAX_BYTES or now - about.st_mtime > MAX_AGE:
                path.unlink(missing_ok=True)
        for run in runs:
            with contextlib.suppress(OSError):  # it is not empty
                run.rmdir()


class KeptBatches(Generic[Item]):
    """What the batches of a set come to, made in turn; an earlier run may have made the first ones.

    Args:
        kept: Where; None keeps nothing.
        name: A sha256 that tells these batches from all others of the run.
        pack: Makes an entry of some items; its `about` says how many.
        unpack: Makes the items again, of an entry and the number of its first batch.

    Attributes:
        found: The items that are there.
        seconds: What they took.
    """

    def __init__(
        self,
        kept: Unfinished | None,
        name: str,
        pack: Callable[[Sequence[Item]], Entry],
        unpack: Callable[[Entry, int], Iterable[Item]],
    ) -> None:
        self._kept, self._name, self._pack = kept, name, pack
        self._new: list[Item] = []
        self.found: list[Item] = []
        self.seconds = 0.0
        while kept is not None and (entry := kept.get(self._part(len(self.found)))) is not None:
            self.found += unpack(Entry(entry.tensors, entry.about["about"]), len(self.found))
            self.seconds += entry.about["seconds"]
        self._first, self._since = len(self.found), time.monotonic()

    def add(self, item: Item) -> None:
        """The next batch; of several processes all add it."""
        if self._kept is not None:
            self._new.append(item)
            if self._kept.is_due():
                self._kept.put(*self._gathered())

    def end(self) -> None:
        """All batches are done."""
        if self._kept is not None and self._new:
            small = self._gathered()
            self._kept.put(*small) if self._kept.is_due(SOON) else self._kept.later(*small)

    def _gathered(self) -> tuple[str, Entry]:
        packed, now = self._pack(self._new), time.monotonic()
        name, about = self._part(self._first), {"about": packed.about, "seconds": now - self._since}
        self._first, self._new, self._since = self._first + len(self._new), [], now
        return name, Entry(packed.tensors, about)

    def _part(self, first: int) -> str:
        """Named by its first batch: of runs that were stopped, each cuts the batches at other places."""
        return hashlib.sha256(f"{self._name} {first}".encode()).hexdigest()


def _entries(folder: Path) -> Iterator[Path]:
    """The files of a run; none of a folder that is not there, or is a link."""
    if not folder.is_symlink() and folder.is_dir():
        yield from (path for path in folder.iterdir() if ENTRY.fullmatch(path.name))


def _holds_work(folder: Path) -> bool:
    """Whether a run has left a whole file; not one that a kill left while it was written."""
    try:
        return any(not path.name.startswith(".") for path in _entries(folder))
    except OSError as error:
        logger.info("no work to go on with: %s", error)
        return False


def _forms(about: Mapping[str, Any]) -> tuple[Forms, Forms]:
    found = {name: TensorForm((form[0],), tuple(form[1:]), empty=True) for name, form in about["tensors"].items()}
    return found, {}


def _form(value: Any, place: str) -> None:
    """A type and the sizes of a tensor."""
    listed(ANYTHING, least=1)(value, place)
    TEXT(value[0], place)
    listed(COUNT)(value[1:], place)


FORM = records.Form(
    keyed({"key": SHA256, "mac": SHA256, "about": ANYTHING, "tensors": mapped(_form)}), _forms, "remove it"
)
