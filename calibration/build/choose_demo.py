"""Which settings the demo and repel use: tried on the split `val`, never on a test split.

    python calibration/build/choose_demo.py

UWM's τ: the largest mean of Txt and Img among the τ that keep at least nine tenths of the safe recall (mean of R@1
Ts→Vs and Vs→Ts); of equal ones the smallest. Not GS: on 200 pairs it moves by single pairs (0 to 1.5 %).

Repel's share and strength: the largest PU among those that lose at most 6 points of safe recall in either direction;
of equal ones the smallest share.

The control of equal kind and size is printed beside each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uwm
from uwm.editing import settings
from uwm.editing.editors import Editor, Statistics, find_editor
from uwm.editing.making import about, gather, make_patch
from uwm.shipped_files import DEMO_MODEL, DEMO_SET

MASSES = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2)
KEPT = 0.9
SHARES, STRENGTHS, LOST = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3), (0.6, 1.2, 2.0), 6.0
SHOWN = ("GS", "PU", "PS", "Txt", "Img", "R1_ts_vs", "R1_vs_ts")
Measure = Callable[[str, "uwm.Patch | None"], dict[str, float]]


def main() -> None:
    """Print the tables and the choices."""
    model, pairs = uwm.load(DEMO_MODEL), uwm.read_calibration(DEMO_SET)
    calib, val = pairs.split("calib"), pairs.split("val")

    def measure(name: str, patch: uwm.Patch | None) -> dict[str, float]:
        if patch is None:
            figures = uwm.evaluate(model, val).figures
        else:
            with uwm.patched(model, patch):
                figures = uwm.evaluate(model, val).figures
        percent = {key: 100 * value[0] for key, value in figures.items()}
        print(f"{name:28}" + "".join(f"{percent[key]:9.1f}" for key in SHOWN), flush=True)
        return percent

    print(f"{'':28}" + "".join(f"{key:>9}" for key in SHOWN))
    before = measure("none", None)
    for name, choose in (("uwm", choose_mass), ("repel", choose_repel)):
        editor = find_editor(name)
        statistics = editor.statistics(model, about(calib), editor.Settings())
        gather(model, statistics, calib)
        choose(model, editor, statistics, before, measure)


def tried(model: uwm.Model, editor: Editor, statistics: Statistics, measure: Measure, **given: Any) -> dict[str, float]:
    """The figures of an edit with these settings; those of its control are printed too."""
    made, told = settings.make(editor, given), " ".join(f"{key} {value:g}" for key, value in given.items())
    found = measure(f"{editor.name} {told}", make_patch(model, editor.edit(model, statistics, made), {}))
    measure(f"  control {told}", make_patch(model, editor.control(model, statistics, made), {}))
    return found


def choose_mass(
    model: uwm.Model, editor: Editor, statistics: Statistics, before: dict[str, float], measure: Measure
) -> None:
    """UWM's τ."""
    floor = KEPT * (before["R1_ts_vs"] + before["R1_vs_ts"]) / 2
    found = []
    for mass in MASSES:
        figures = tried(model, editor, statistics, measure, mass=mass)
        if (figures["R1_ts_vs"] + figures["R1_vs_ts"]) / 2 >= floor:
            found.append(((figures["Txt"] + figures["Img"]) / 2, -mass))
    print("chosen: mass", -max(found)[1] if found else "none keeps enough")


def choose_repel(
    model: uwm.Model, editor: Editor, statistics: Statistics, before: dict[str, float], measure: Measure
) -> None:
    """Repel's share and strength."""
    found = []
    for strength in STRENGTHS:
        for share in SHARES:
            figures = tried(model, editor, statistics, measure, share=share, strength=strength)
            if max(before[name] - figures[name] for name in ("R1_ts_vs", "R1_vs_ts")) <= LOST:
                found.append((figures["PU"], -share, strength))
    _, share, strength = max(found) if found else (0, 0, "none keeps enough")
    print("chosen: share", -share, "strength", strength)


if __name__ == "__main__":
    main()
