"""Score once, then try thresholds for free; write the one you like, and undo it again.

python examples/02_thresholds.py FOLDER
"""

import sys
from pathlib import Path

import uwm
from uwm.shipped_files import DEMO_MODEL, DEMO_SET

folder = Path(sys.argv[1])
model = uwm.load(DEMO_MODEL)
scores = uwm.score(model, uwm.read_calibration(DEMO_SET, split="calib", limit=64))
scores.save(folder / "scores.safetensors")

for mass in (0.01, 0.02, 0.05, 0.1):
    patch = uwm.select(scores, mass=mass)
    print(f"mass {mass}: {sum(patch.counts().values())} entries")

uwm.apply(DEMO_MODEL, uwm.select(scores, mass=0.02), output=folder / "safer")
uwm.revert(folder / "safer", uwm.Patch.load(folder / "safer"), output=folder / "back")
print("edited against original:", len(uwm.diff(DEMO_MODEL, folder / "safer")), "tensors differ")
print("reverted against original:", len(uwm.diff(DEMO_MODEL, folder / "back")), "tensors differ")
