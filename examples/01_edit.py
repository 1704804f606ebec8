"""Edit a model in Python and measure it, without writing anything.

python examples/01_edit.py
"""

import uwm
from uwm.shipped_files import DEMO_SET

model = uwm.load("demo")  # or a Hugging Face or open_clip folder
pairs = uwm.read_calibration(DEMO_SET)
calib, test = pairs.split("calib").limit(128), pairs.split("test").limit(64)

scores = uwm.score(model, calib)
patch = uwm.select(scores, mass=0.02)
before = uwm.evaluate(model, test)
with uwm.patched(model, patch):  # undone exactly on exit
    after = uwm.evaluate(model, test)

for name, (mean, low, high) in after.figures.items():
    print(f"{name:12} {100 * before.figures[name][0]:5.1f} → {100 * mean:5.1f}  [{100 * low:.1f}, {100 * high:.1f}]")
