"""The edit against a random one of the same size and a pruning baseline, on a few pairs: one table, one plot.

python examples/05_compare.py FOLDER
"""

import sys
from pathlib import Path

import uwm
from uwm.shipped_files import DEMO_SET

recipe = uwm.CompareRecipe(
    model="demo",
    calib=str(DEMO_SET),
    eval_splits=("val",),
    limit=64,
    methods=("uwm", "random", "grad-unsafe:mass=0.035"),
    masses=(0.05, 0.1),
)
found = uwm.compare(recipe, Path(sys.argv[1]) / "comparison")  # run it again: nothing is made anew
for row in found.tables["val"]:
    shown = (f"{name} {100 * row.figures[name].value[0]:.1f}" for name in ("P_vu", "GS", "R1_safe"))
    print(row.method, "" if row.at is None else f"τ {row.at[1]}", *shown)
