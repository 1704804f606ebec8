"""A small search over real editors: 24 pairs, a tiny model. Run as a program it keeps a journal, to be killed."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from pathlib import Path

import uwm
from uwm.editing import settings as settings_of
from uwm.editing.settings import Range
from uwm.tuning.choosing import Ground, SearchRequest

READING = {"data_sets": {}, "batch_size": 16, "workers": 1}


def ground_of(model_path, calib_path):
    calib = uwm.read_calibration(calib_path)
    return Ground.of(uwm.load(model_path), calib, None, 0, **READING), calib


def search_of(ground, calib, journal=None, seed=0, **request):
    """A search; ``max_loss`` and the rest as `SearchRequest` has them."""
    wanted = SearchRequest(**{"max_loss": "30pt", "methods": ("null-space", "hidden-units"), **request})
    criteria = wanted.criteria(calib, {}, False)
    if seed:
        from dataclasses import replace

        ground = replace(ground, seed=seed)
    return ground.search(wanted, criteria, journal)


def outcome(found):
    """What a search tried, without what the clock says."""
    return found.tried, found.invalid, found.stopped, found.trials


def main() -> None:
    """MODEL CALIB JOURNAL TRIALS: prints a line a trial that is done."""
    model, calib, journal, trials = sys.argv[1:]
    ground, pairs = ground_of(model, calib)
    search = search_of(ground, pairs, Path(journal))
    print(f"begins with {search.done}", flush=True)
    for number in range(search.done, int(trials)):
        search.run(number + 1)
        print(f"done {number}", flush=True)


def settings_with(default):
    """A class of made-up settings: one whose default is given, and one without."""
    tried = settings_of.setting(default, float, "Made up.", search=Range(0, 1))
    inside = settings_of.setting(None, float, "Made up.", search=Range(0, 1, start=0.5))
    return make_dataclass("Settings", [("outside", float, tried), ("inside", float, inside)], frozen=True)


if __name__ == "__main__":
    main()
