"""Verbs that are killed, run out of disk and meet themselves: `PYTHONPATH=.:tests python tests/faults/kill_matrix.py`.

A process imports everything once, and each trial is a child of it. Drawn at random: when a run is killed, how much room
the disk has, how much later the second of two begins, and whether an earlier output is there. A verb that keeps its
work is stopped up to three times in a row, by a signal drawn at random, and goes on then. What is dear and has nothing
to do with files (charts, pages, resampling) is made cheap.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

from conftest import write_tiny_hf, write_tiny_set
from faults.outputs_of_trials import KEEPING, VERBS, Bytes, Verb, bytes_of, result_of, strays
from PIL import Image
from stopping import keeping

import uwm.clock
import uwm.intervals
from uwm.errors import KEPT
from uwm.inputs import describing
from uwm.report import plotting

SHARED = Path("/dev/shm")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # that stop a verb which keeps its work
PAGE = 4096  # bytes in which a disk gives room


class Wrong(AssertionError):
    """What a trial showed is not as it should be."""


@dataclass
class Ended:
    """How a run ended: its code, negative for a signal, what it said, and when it began and ended."""

    code: int
    text: str
    begun: float
    ended: float


@dataclass
class Ground:
    """The inputs, and where trials write.

    Attributes:
        root: Of everything.
        inputs: What is only read.
        before: The inputs as they were.
        seconds: Verb -> how long an undisturbed run takes.
        whole: Verb -> what an undisturbed run leaves.
        earlier: Verb -> the output that is there before, where one is.
    """

    root: Path
    inputs: Path
    before: Bytes
    seconds: dict[str, float] = field(default_factory=dict)
    whole: dict[str, Bytes] = field(default_factory=dict)
    earlier: dict[str, Path] = field(default_factory=dict)


def ground_of(root: Path) -> Ground:
    """A tiny model, a dozen pairs, and images of two classes."""
    inputs = root / "inputs"
    inputs.mkdir()
    write_tiny_hf(inputs / "model")
    write_tiny_set(inputs / "set", 12, 8)
    for number in range(7):
        image = inputs / "classes" / ("dog", "cat")[number % 2] / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * number, 0, 90)).save(image)
    return Ground(root, inputs, bytes_of(inputs))


# ---------------------------------------------------------------- runs


@contextlib.contextmanager
def cheap() -> Iterator[None]:
    """Without what takes long and has nothing to do with files."""
    with (
        mock.patch.object(plotting, "_written", return_value=b"image" * 2000),
        mock.patch.object(describing, "html_report", return_value="<html>" + "a page" * 4000),
        mock.patch.object(uwm.clock, "_reset_peak"),
        mock.patch.object(uwm.intervals.bootstrap, "__defaults__", (20,)),
    ):
        yield


def start(
    ground: Ground,
    arguments: list,
    log: Path,
    cold: bool = False,
    most: int | None = None,
    within: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> int:
    """A run in a child that may write files of so many bytes, within a context; its process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        os.environ["XDG_CACHE_HOME"] = str(log.with_suffix(".cache") if cold else ground.root / "cache")
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with within():
            code = called(arguments)
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def called(arguments: list) -> int:
    """The program in this process; its exit code."""
    from uwm import cli

    try:
        cli.main([*map(str, arguments), "-q"])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 98


def wait(child: int, log: Path, begun: float) -> Ended:
    """Wait for a run."""
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text("utf-8", "replace"), begun, time.monotonic())


def run(ground: Ground, arguments: list, log: Path, cold: bool = False, most: int | None = None) -> Ended:
    """Run, to its end."""
    begun = time.monotonic()
    return wait(start(ground, arguments, log, cold, most), log, begun)


def learn(ground: Ground, verb: Verb) -> None:
    """Import all that a verb needs, and keep an earlier output, what an undisturbed run leaves, and its time."""
    place, log = ground.root / f"learn-{verb.name}", ground.root / "learn.txt"
    place.mkdir()
    out = place / "out"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = called(verb.arguments(ground.inputs, out, earlier=True))
    demand(code == 0, f"{verb.name} ended with {code}: {said.getvalue()}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as before the program listened
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ground.earlier[verb.name] = out.rename(ground.root / f"earlier-{verb.name}")
    ended = run(ground, verb.arguments(ground.inputs, out), log)
    demand(ended.code == 0, f"undisturbed {verb.name} ended with {ended.code}: {ended.text}")
    ground.seconds[verb.name] = ended.ended - ended.begun
    ground.whole[verb.name] = result_of(out)
    demand(result_of(ground.earlier[verb.name]) != ground.whole[verb.name], "the earlier output is no other one")


def demand(right: bool, words: str) -> None:
    """Raise Wrong with words where something is not right."""
    if not right:
        raise Wrong(words)


# ---------------------------------------------------------------- trials


@dataclass
class Trial:
    """One trial: a fresh folder, with or without an earlier output in it."""

    ground: Ground
    verb: Verb
    place: Path
    rng: random.Random

    def __post_init__(self) -> None:
        self.out, self.log = self.place / "out", self.ground.root / "trial.txt"
        self.cold = self.rng.random() < 0.25
        self.replaces = self.rng.random() < 0.5 and self.verb.gives == "-o"  # pages are not replaced
        if self.replaces:
            _copy(self.ground.earlier[self.verb.name], self.out)
        self.old = result_of(self.out) if self.replaces else None
        more = ["--overwrite"] if self.replaces and not self.verb.resumes else []
        self.arguments = [*self.verb.arguments(self.ground.inputs, self.out), *more]
        shutil.rmtree(self.log.with_suffix(".cache"), ignore_errors=True)

    def is_new(self) -> bool:
        """Whether the output is that of an undisturbed run."""
        return os.path.lexists(self.out) and result_of(self.out) == self.ground.whole[self.verb.name]

    def check_kept(self) -> None:
        """The inputs are as they were; the output is the earlier or the new one, or none that looks like one."""
        demand(bytes_of(self.ground.inputs) == self.ground.before, "an input was changed")
        if self.is_new():
            return
        if self.verb.resumes:
            self.verb.check_parts(self.out, self.old, self.ground.whole[self.verb.name])
        elif self.old is not None:
            aside = [*self.place.glob(".uwm-old-*-out")]
            kept = self.out if os.path.lexists(self.out) else aside[0] if len(aside) == 1 else None
            demand(kept is not None and result_of(kept) == self.old, "the earlier output is not whole")
        else:
            demand(not os.path.lexists(self.out), f"half an output: {sorted(result_of(self.out))}")

    def check_clean(self, allowed: tuple[str, ...] = ()) -> None:
        """Nothing is left beside the output or in it."""
        left = [name for name in strays(self.place) if name not in allowed]
        demand(not left, f"left behind: {left}")

    def check_again(self) -> None:
        """The same command ends well, with the bytes of an undisturbed run."""
        done = self.is_new() and not self.verb.resumes and not self.replaces
        again = run(self.ground, self.arguments, self.log, self.cold)
        if done:
            demand(again.code == 2 and "exists; pass --overwrite" in again.text, f"{again.code}: {again.text}")
        else:
            demand(again.code == 0, f"again: {again.code}: {again.text[-400:]}")
            seconds = self.ground.seconds  # the machine may be busier than it was
            seconds[self.verb.name] = (3 * seconds[self.verb.name] + again.ended - again.begun) / 4
        odd = self.verb.difference(self.out, self.ground.whole[self.verb.name])
        demand(self.is_new(), f"again: not the output of an undisturbed run: {odd}")
        self.check_clean()
        demand(bytes_of(self.ground.inputs) == self.ground.before, "an input was changed")


def killed(trial: Trial) -> str:
    """SIGKILL at a random moment, then the same again."""
    begun = time.monotonic()
    child = start(trial.ground, trial.arguments, trial.log, trial.cold)
    time.sleep(trial.rng.random() * 1.1 * trial.ground.seconds[trial.verb.name])
    os.kill(child, signal.SIGKILL)
    ended = wait(child, trial.log, begun)
    demand(ended.code in (0, -signal.SIGKILL), f"{ended.code}: {ended.text[-400:]}")
    trial.check_kept()
    trial.check_again()
    return "killed" if ended.code else "over before"


def full(trial: Trial) -> str:
    """A disk that is full after a random number of bytes; where no disk can be mounted, a bound for every file."""
    sizes = [len(data) for data in result_of(trial.ground.earlier[trial.verb.name]).values()]
    pages = 4 + sum(-(-size // PAGE) for size in sizes) + len(sizes)
    free, mounted = trial.rng.randrange(1, pages), os.path.ismount(trial.place)
    with room(trial.place, free) if mounted else contextlib.nullcontext():
        most = None if mounted else trial.rng.randrange(1, max(sizes))
        ended = run(trial.ground, trial.arguments, trial.log, most=most)
        trial.check_kept()
        trial.check_clean(trial.verb.kept)
    if ended.code == 0:
        demand(trial.is_new(), "ended well without the output")
        return "room enough"
    one = ended.text.startswith("uwm: error: ") and ended.text.count("\n") == 1
    demand(ended.code == 4 and one, f"{ended.code}: {ended.text[-600:]}")
    demand(any(word in ended.text for word in ("No space left", "File too large")), ended.text)
    return "full"


@contextlib.contextmanager
def room(place: Path, pages: int) -> Iterator[None]:
    """Let the disk at a mounted place have only so many free pages."""
    used = int(
        subprocess.run(
            ["df", "--output=used", "-B1", place], capture_output=True, text=True, check=True
        ).stdout.split()[1]
    )
    subprocess.run(["mount", "-o", f"remount,size={used + pages * PAGE}", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,size=200m", place], check=True)


def two(trial: Trial) -> str:
    """The same command twice at once, the second a random time later."""
    logs = trial.log, trial.log.with_name("other.txt")
    begun = [time.monotonic()]
    children = [start(trial.ground, trial.arguments, logs[0], trial.cold)]
    time.sleep(trial.rng.random() * 1.2 * trial.ground.seconds[trial.verb.name])
    begun.append(time.monotonic())
    children.append(start(trial.ground, trial.arguments, logs[1], trial.cold))
    ends: dict[int, Ended] = {}
    while len(ends) < 2:
        child, status = os.wait()
        number = children.index(child)
        text = logs[number].read_text("utf-8", "replace")
        ends[number] = Ended(os.waitstatus_to_exitcode(status), text, begun[number], time.monotonic())
    first, second = ends[0], ends[1]
    codes = sorted([first.code, second.code])
    demand(codes[0] == 0, f"none won: {first.code} {first.text[-300:]}, {second.code} {second.text[-300:]}")
    demand(trial.is_new(), "not the output of one run")
    trial.check_clean()
    if codes == [0, 0]:
        demand(trial.verb.resumes or trial.replaces, "both won without --overwrite")
        return "one after the other"
    loser = first if first.code else second
    demand(loser.code in (2, 4) and loser.text.count("\n") == 1, f"{loser.code}: {loser.text[-600:]}")
    words = {4: ("is writing it now", "appeared while"), 2: ("exists; pass --overwrite",)}[loser.code]
    demand(any(word in loser.text for word in words), loser.text)
    return "in use" if loser.code == 4 else "exists"


def stopped(trial: Trial) -> str:
    """Stopped at random moments, or when it has kept work so often, once or more; then the same again."""
    trial.cold, work = True, trial.log.with_suffix(".cache") / "uwm" / "unfinished"
    for _ in range(trial.rng.randrange(1, 4)):
        begun, number, before = time.monotonic(), trial.rng.choice(SIGNALS), kept_in(work)
        at = trial.rng.randrange(1, 25) if trial.rng.random() < 0.5 else None
        within = partial(keeping, partial(stop_itself, at, number))
        child = start(trial.ground, trial.arguments, trial.log, cold=True, within=within)
        if at is None:
            time.sleep((0.1 + 0.8 * trial.rng.random()) * trial.ground.seconds[trial.verb.name])
            os.kill(child, number)
        ended = wait(child, trial.log, begun)
        unheard = ended.code == -number or "KeyboardInterrupt" in ended.text  # before the program listened
        demand(unheard or ended.code in (0, 128 + number), f"{ended.code}: {ended.text[-400:]}")
        trial.check_kept()
        if not ended.code:
            odd = trial.verb.difference(trial.out, trial.ground.whole[trial.verb.name])
            demand(trial.is_new(), f"not the output of an undisturbed run: {odd}")
            return "gone on with" if before else "over before"
        promised, left = KEPT in ended.text, kept_in(work)
        demand(left != {} or not promised, f"promised, and nothing is there: {ended.text[-400:]}")
        demand(unheard or promised or left == before, f"did not say how to go on: {ended.text[-400:]}")
    trial.check_again()
    demand(not [*work.glob("*")], f"work is left behind: {[*work.rglob('*')]}")
    return "gone on with" if left else "begun anew"


def stop_itself(at: int | None, number: int, puts: int) -> None:
    """Send a signal to this process when it has kept work for the `at`-th time."""
    if puts == at:
        os.kill(os.getpid(), number)


def kept_in(work: Path) -> dict[Path, int]:
    """The whole files that runs have left to go on with, and when they were written."""
    whole = [path for path in work.rglob("*.safetensors") if not path.name.startswith(".uwm")]
    return {path: path.stat().st_mtime_ns for path in whole}


FAULTS: dict[str, Callable[[Trial], str]] = {
    "killed": killed,
    "disk full": full,
    "two at once": two,
    "stopped": stopped,
}


# ---------------------------------------------------------------- the matrix


def main() -> None:
    """Prints a line for each verb and fault, and exits with 1 where a trial is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default=",".join({**VERBS, **KEEPING}))
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.minutes
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as folder, cheap():
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        rows = [*rows_of(Path(folder), chosen.faults.split(","), chosen.verbs.split(","))]
        for seed in range(chosen.seed, chosen.seed + chosen.trials):
            for row in rows:
                if time.monotonic() < end:
                    row.add(seed)
    for row in rows:
        row.tell()
    raise SystemExit(any(row.wrong for row in rows))


def rows_of(folder: Path, faults: list[str], verbs: list[str]) -> Iterator[Row]:
    """A row for each fault and verb that meets it, after all that a verb needs was imported."""
    for name, table in (("verbs", VERBS), ("keeping", KEEPING)):
        met = [fault for fault in faults if (fault == "stopped") == (table is KEEPING)]
        known = [verb for verb in table.values() if met and verb.name in verbs]
        (folder / name).mkdir()
        ground = ground_of(folder / name)
        for verb in known:
            learn(ground, verb)
        yield from (Row(fault, verb, ground) for fault in met for verb in known)


@dataclass
class Row:
    """The trials of one fault and verb: what they came to, and those that were not as they should be."""

    fault: str
    verb: Verb
    ground: Ground
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, seed: int) -> None:
        """One more trial."""
        rng = random.Random(f"{self.verb.name} {self.fault} {seed}")
        try:
            with folder_for(self.ground, self.fault) as place:
                self.counts[FAULTS[self.fault](Trial(self.ground, self.verb, place, rng))] += 1
        except AssertionError as error:
            self.wrong.append(f"seed {seed}: {error}")

    def tell(self) -> None:
        """Print a line, and one for each of the first wrong ones."""
        listed = ", ".join(f"{count} {word}" for word, count in self.counts.most_common())
        right = f"{sum(self.counts.values()):4} as it should be, {len(self.wrong)} not"
        print(f"{self.verb.name:9} {self.fault:12} {right} ({listed})", flush=True)
        for words in self.wrong[:5]:
            print(f"    {words}"[:1500], flush=True)


@contextlib.contextmanager
def folder_for(ground: Ground, fault: str) -> Iterator[Path]:
    """A fresh folder, a disk of its own where it is to be full."""
    place = ground.root / "trial"
    place.mkdir()
    mounted = fault == "disk full"
    if mounted:
        words = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", place]
        mounted = subprocess.run(words, check=False, capture_output=True).returncode == 0
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", place], check=True)
        shutil.rmtree(place)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
