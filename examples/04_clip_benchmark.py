"""Ask a program that knows nothing of uwm: CLIP_benchmark measures an edited model, and finds uwm's own figures.

pip install clip_benchmark requests "numpy<2.4"    (1.6.2 does not say that it needs requests, nor run on later numpy)
python examples/04_clip_benchmark.py FOLDER

CLIP_benchmark reads open_clip models and WebDataset archives. `uwm edit --also-export open_clip` writes the model in
that form beside the edited one; the archive is made here, from a folder such as --zero-shot takes.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from uwm.shipped_files import DEMO_SET

folder = Path(sys.argv[1])
pictures = DEMO_SET / "zero_shot" / "unseen"


def run(module, *arguments):
    """A program, as the terminal would start it."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def write_archive(target):
    """The pictures as one WebDataset shard with names and prompts beside it, as CLIP_benchmark expects them."""
    (target / "test").mkdir(parents=True)
    (target / "test" / "nshards.txt").write_text("1")
    (target / "classnames.txt").write_text((pictures / "classnames.txt").read_text("utf-8").strip())
    prompt = (pictures / "templates.txt").read_text("utf-8").split("\n")[0].replace("{}", "{c}")
    (target / "zeroshot_classification_templates.txt").write_text(prompt)
    classes = sorted(path for path in pictures.iterdir() if path.is_dir())
    items = [(path, label) for label, one in enumerate(classes) for path in sorted(one.iterdir())]
    with tarfile.open(target / "test" / "0.tar", "w") as archive:
        for number, (path, label) in enumerate(items):
            for suffix, content in ((path.suffix, path.read_bytes()), (".cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{number:06d}{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


edit = ("--calib", DEMO_SET, "--split", "calib", "--eval-split", "test", "--mass", 0.1, "--also-export", "open_clip")
run("uwm", "edit", "demo", *edit, "-o", folder / "safer", "-q")
write_archive(folder / "archive")

found = run("uwm", "eval", folder / "safer", "--pairs", DEMO_SET, "--split", "test", "--zero-shot", pictures, "--json")
own = json.loads(found)["model"]["zero_shot"]["unseen"]

open_clip = ("--model", f"local-dir:{folder / 'safer' / 'open_clip'}", "--pretrained", "", "--no_amp")
data = ("--dataset", "wds/unseen", "--dataset_root", folder / "archive", "--num_workers", 0)
run("clip_benchmark.cli", "eval", *open_clip, *data, "--output", folder / "theirs.json")
theirs = json.loads((folder / "theirs.json").read_text())["metrics"]

for name, their_name in (("top1", "acc1"), ("top5", "acc5"), ("mean_per_class", "mean_per_class_recall")):
    print(f"{name:15} uwm {100 * own[name]:.4f}  CLIP_benchmark {100 * theirs[their_name]:.4f}")
    assert abs(own[name] - theirs[their_name]) < 0.5 / own["pictures"], "they disagree by a picture or more"
print("both programs agree")
