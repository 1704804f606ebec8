"""README and guides: every command is run on tiny models and sets, or read against the program's own flags.

Three kinds of commands. Those of `NOT_HERE` are only read, for the reason beside them. Those of `LONG` run in the slow
tests. All others run here, as they stand, in a folder where MODEL, set/ and the like are tiny ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import click
import pytest
from documents import DOCUMENTS, README, ROOT, anchors, blocks, commands, flags_of, links, parsed, spans
from knowledge.tiny_published import cifar10
from packaging.specifiers import SpecifierSet
from PIL import Image
from telling_pairs import telling_set

from uwm import figures
from uwm.calibration.native import KEYS
from uwm.cli import uwm
from uwm.cli.main_job import names
from uwm.comparison.methods import parse_methods
from uwm.editing.editors import editor_names
from uwm.errors import BadInput
from uwm.expressions import parse_max_loss, parse_objective, parse_requirements
from uwm.knowledge.published import PUBLISHED
from uwm.readers.detectors import find_detectors

NOT_HERE = {
    "uwm push": "no Hub can be reached; tests/test_push.py runs it against one of its own",
    "srun": "needs Slurm; what it starts is read",
    "uwm edit MODEL --calib set/ --device cuda": "needs a GPU",
    "uwm edit demo --calib calibration/emoji --eval-split val --for": "tests/test_examples.py runs the block",
    "uwm eval safer-vision/ --caption": "tests/test_examples.py runs the block",
    "uwm eval safer-text/ --generate": "needs diffusers; tests/test_examples.py runs the block where it is",
    ".venv/bin/uwm demo": "tests/test_demo.py compares what it prints; tests/test_wheel.py runs it as installed",
}
LONG = {
    "uwm demo": "half a minute and more",
    "uwm try": "half a minute",
    "uwm eval demo": "a quarter of a minute",
    "uwm compare MODEL --calib set/ --eval-split test": "some fifty runs; a list of them is made here",
    "torchrun": "four processes",
}
# Programs that are not uwm: what they are given exists, which `test_other_commands_name_what_there_is` holds.
OTHERS = (
    *("python", "python3", ".venv/bin/python", "pip", ".venv/bin/pip", ".venv/bin/pytest"),
    *("export", "eval", "docker", "bash"),
)
OF_OTHERS = {"--gpus"}  # flags that prose names and that are not ours
PLUG_INS = {"shrink-difference": "editors", "captions-only": "backends"}  # of examples/
QUICK = {"UWM_EPOCHS": "1", "UWM_QUIET": "1"}
FEW = {"UWM_TRIALS": "6"}  # of a search


def kind(command, table) -> str | None:
    """Why a command stands in a table; the longest of its beginnings counts."""
    starts = [start for start in table if str(command) == start or f"{command} ".startswith(f"{start} ")]
    exact = [start for start in starts if start not in ("uwm try", "uwm demo") or "MODEL" not in str(command)]
    return table[max(exact, key=len)] if exact else None


def check_values(given: dict) -> None:
    """Values that click takes as text and uwm reads later. Raises whatever uwm would."""
    method = given.get("method")
    assert method is None or method in {*editor_names(), "safe-clip", *PLUG_INS}, method
    for text in given.get("requirements", ()):
        parse_requirements(text, True)
    if given.get("max_loss") is not None:
        parse_max_loss(given["max_loss"], ["cifar10"], True)
    if given.get("objective") is not None:
        parse_objective(given["objective"])
    for name in given.get("zero_shot", ()):
        assert name in PUBLISHED, name
    for text in given.get("detector", ()):
        assert text.partition(":")[0] in find_detectors(), text
    for text in given.get("methods") or ():
        ours = [name for name in names(text) if not any(name.startswith(other) for other in PLUG_INS)]
        parse_methods(tuple(ours), backends(), {}, ())


def backends():
    from uwm.backends import find_backends

    return find_backends()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_command_is_one_that_uwm_has(path):
    """Its verb, its flags and their values."""
    text = path.read_text("utf-8")
    for command in commands(text):
        if command.arguments is None:  # another program, or how a shell completes ours
            assert "_UWM_COMPLETE" in command.environment or command.words[0] in OTHERS, f"{path.name}: {command}"
        else:
            check_values(parsed(command.arguments))
    assert blocks(text) or blocks(text, "python") or path.stem == "what-the-figures-mean"


@pytest.mark.parametrize(
    "wrong",
    ["uwm edti MODEL", "uwm edit MODEL --calib set/ --maxloss 2%", "uwm eval safer/ --pairs set/ --require 'GS>>4'",
     "uwm edit --calib", "uwm score MODEL -o x", "uwm edit MODEL --calib set/ --method rebel",
     "uwm edit MODEL --calib set/ --batch-size many", "uwm compare MODEL --calib set/ --methods uwm:masss=1"],
)  # fmt: skip
def test_a_command_that_uwm_lacks_is_noticed(wrong):
    command = commands(f"```\n{wrong}\n```")[0]
    with pytest.raises((click.ClickException, AssertionError, BadInput), match=r".+"):
        check_values(parsed(command.arguments))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_flags_verbs_and_files_that_the_text_names_exist(path):
    text = path.read_text("utf-8")
    for span in spans(text):
        words = span.split()
        if words[0] == "uwm" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in uwm.commands, f"{path.name}: {span}"
        if words[0] not in ("python", "torchrun", "pip", "tensorboard", "trackio", "wandb"):
            known = flags_of(words[1] if words[0] == "uwm" and words[1:2] and words[1] in uwm.commands else None)
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span):
                assert flag in known | OF_OTHERS, f"{path.name}: {span}"
        for name in re.findall(r"(?:uwm|tests|calibration|examples)/[\w./-]*\w", span):
            assert (ROOT / name).exists() or name.endswith("embeddings"), f"{path.name}: {span}"
        for extra in re.findall(r"uwm\[(\w+)\]", span):
            assert extra in extras(), f"{path.name}: {span}"
    for target, anchor in links(text):
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(there.read_text("utf-8")), f"{path.name}: {target}#{anchor}"


@pytest.mark.parametrize("wrong", ["`uwm edti`", "`--maxloss`", "`uwm tune --max-loss`", "`uwm/none.py`", "`uwm[x]`"])
def test_a_name_that_is_wrong_is_noticed(wrong, tmp_path):
    (tmp_path / "page.md").write_text(f"Text with {wrong} in it.\n")
    with pytest.raises(AssertionError):
        test_flags_verbs_and_files_that_the_text_names_exist(tmp_path / "page.md")


def test_the_readme_leads_to_every_guide():
    there = {(README.parent / target).resolve() for target, _ in links(README.read_text("utf-8"))}
    assert [path.name for path in DOCUMENTS if path not in {README, *there}] == []
    assert len(README.read_text("utf-8").splitlines()) <= 100


def test_the_guide_to_the_figures_names_all_of_them():
    text = (ROOT / "examples" / "guides" / "what-the-figures-mean.md").read_text("utf-8")
    table = text.partition("## Retrieval")[0]
    single = [name for name in figures.PAIRED if not name.startswith("R") or name in figures.MEANS]
    assert [name for name in (*single, *figures.OF_DATA_SETS) if name not in table] == []
    recall = {name.partition("_")[::2] for name in figures.PAIRED if name.startswith("R") and name not in figures.MEANS}
    assert [part for pair in recall for part in pair if part.lstrip("_") not in table] == []


def test_the_tables_of_methods_name_ours():
    methods = {name for name in editor_names() if name not in ("random", "magnitude")}
    assert methods <= set(spans(README.read_text("utf-8")))


# ---------------------------------------------------------------- other programs


def extras() -> set[str]:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    return set(settings["options.extras_require"])


def test_other_commands_name_what_there_is():
    """Files that they are given are in the checkout, extras in setup.cfg."""
    found = [c for path in DOCUMENTS for c in commands(path.read_text("utf-8")) if c.arguments is None]
    for command in found:
        program, *rest = map(str, command.words)
        if Path(program).name == "pip":
            assert rest[0] == "install" or rest == ["wheel", ".", "./calibration", "--no-deps"]
            for name in (word for word in rest[1:] if "/" in word and "://" not in word):
                assert (ROOT / name / "pyproject.toml").is_file(), command
            asked = [found for word in rest for found in re.findall(r"\[([\w,]+)\]", word)]
            assert {extra for found in asked for extra in found.split(",")} <= extras()
        elif Path(program).name.startswith("python") and rest[0] != "-m":
            assert (ROOT / rest[0]).is_file(), command
    assert len(found) > 5


def test_the_build_of_torch_for_cpus_is_one_that_uwm_accepts():
    """Its versions end in +cpu. The README installs it before uwm, so that pip leaves it."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    needed = dict(
        re.match(r"(\w+)(.*)", line).groups() for line in settings["options"]["install_requires"].split("\n")[1:]
    )
    for name, version in (("torch", "2.7.0+cpu"), ("torch", "2.9.1+cpu"), ("torchvision", "0.24.1+cpu")):
        assert version in SpecifierSet(needed[name])
    texts = [str(command) for command in commands(README.read_text("utf-8"))]
    cpu = next(i for i, text in enumerate(texts) if "download.pytorch.org/whl/cpu" in text)
    assert "torch torchvision" in texts[cpu]
    assert texts[cpu + 1] == ".venv/bin/pip install . ./calibration"


# ---------------------------------------------------------------- running them


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """A set on which every method finds something to edit."""
    folder = tmp_path_factory.mktemp("sets") / "telling"
    telling_set(folder, 90, held_out=30)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, made, tiny_hf, telling, plug_in):
    """The current folder, with everything that the guides name; plug-ins of the examples are installed."""
    for name, source in (("MODEL", tiny_hf), ("path/to/clip-folder", tiny_hf), ("path/to/other", made / "edited"),
                         ("set", telling), ("safer", made / "edited"), ("photos", telling / "images")):  # fmt: skip
        shutil.copytree(source, tmp_path / name)
    Image.open(telling / "images" / "0000_safe.png").save(tmp_path / "photo.jpg")
    shutil.copy(made / "patch.safetensors", tmp_path)
    (tmp_path / "captions.txt").write_text("a dog\na cat on a tree\n")
    (tmp_path / "settings.toml").write_text('vision-layers = "fc2"\n')
    for name in ("examples", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)
    cifar10(tmp_path / "DATA", monkeypatch, more=30)
    visu(tmp_path, telling)
    for name, group in PLUG_INS.items():
        folder = ROOT / "examples" / f"third_party_{group[:-1]}"
        text = (folder / f"{name.replace('-', '_')}.py").read_text()
        plug_in(f"uwm.{group}", f"{name}-test", name, text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def visu(place: Path, source: Path) -> None:
    """The pairs of a set as ViSU-Text, with its images where the guide says."""
    rows = [json.loads(line) for line in (source / "pairs.jsonl").read_text().splitlines()]
    items = []
    for number, row in enumerate(rows):
        safe = place / "COCO" / f"{number:012d}.jpg"
        unsafe = place / "GENERATED" / "train" / str(number) / "0.jpg"
        for target, side in ((safe, "safe"), (unsafe, "unsafe")):
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(source / row[f"{side}_image"]).save(target)
        items.append({"incremental_id": number, "safe": row["safe_text"], "nsfw": row["unsafe_text"],
                      "tag": row["concept"], "coco_id": number})  # fmt: skip
    (place / "ViSU-Text_train.json").write_text(json.dumps(items))


def carry_out(command, run_uwm, monkeypatch) -> None:
    """Run one, over what an earlier one wrote; a gate may fail."""
    arguments = command.arguments
    few = FEW if arguments[0] == "tune" or "--max-loss" in arguments else {}
    for name, value in (QUICK | few | command.environment).items():
        monkeypatch.setenv(name, value)
    if not few:
        monkeypatch.delenv("UWM_TRIALS", raising=False)
    if "-o" in arguments:
        out = Path(arguments[arguments.index("-o") + 1])
        shutil.rmtree(out, ignore_errors=True)
        if out.is_file():
            out.unlink()
    code, out, err = run_uwm(*arguments)
    gate = any(word.startswith("--require") for word in arguments)
    assert code == 0 or (gate and code == 5), f"{command}\n{err}"
    assert out


def quick(path: Path) -> list:
    found = [c for c in commands(path.read_text("utf-8")) if c.arguments is not None]
    return [c for c in found if kind(c, NOT_HERE) is None and kind(c, LONG) is None]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if quick(path)], ids=lambda p: p.stem)
def test_the_commands_run(path, place, run_uwm, monkeypatch):
    if path.stem == "track-your-runs":
        pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    for command in quick(path):
        carry_out(command, run_uwm, monkeypatch)


def test_the_runs_of_the_long_comparison_are_listed(place, run_uwm):
    command = next(c for c in listed() if kind(c, LONG) == LONG["uwm compare MODEL --calib set/ --eval-split test"])
    code, out, err = run_uwm(*command.arguments, "--dry-run")
    assert code == 0, err
    assert out.count("to do") == 3 * (1 + 3 + 3 + 1 + 1 + 3 + 1 + 3 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_the_long_commands_run(number, place, run_uwm, monkeypatch):
    found = [c for c in listed() if kind(c, LONG) and not kind(c, NOT_HERE)]
    assert len(found) <= 8
    if number >= len(found):
        pytest.skip("there are fewer")
    if found[number].words[0] != "torchrun":
        carry_out(found[number], run_uwm, monkeypatch)
        return
    words = [sys.executable, "-m", "torch.distributed.run", *found[number].words[1:], "--overwrite"]
    environment = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def listed() -> list:
    """Every command of every document that is uwm's."""
    found = [c for path in DOCUMENTS for c in commands(path.read_text("utf-8"))]
    return [c for c in found if c.arguments is not None]


def test_every_exception_is_of_a_command_that_stands_in_a_guide():
    found = listed()
    for table in (NOT_HERE, LONG):
        assert {why for c in found if (why := kind(c, table))} == set(table.values())


def test_the_python_of_the_guides_runs(place, capsys):
    """Block by block, in the order of the page."""
    found = [body for path in DOCUMENTS for body in blocks(path.read_text("utf-8"), "python")]
    shutil.rmtree("safer")
    for body in found:
        exec(compile(body, "guide", "exec"), {})
    assert (len(found), Path("safer/uwm.json").is_file(), Path("safer-too/uwm.json").is_file()) == (2, True, True)
    assert "'verdict'" in capsys.readouterr().out


def test_the_line_of_pairs_has_the_keys_that_are_read():
    text = (ROOT / "examples" / "guides" / "your-set.md").read_text("utf-8")
    row = json.loads(re.search(r"^```\n(\{.*\})$", text, re.M)[1])
    assert set(row) <= set(KEYS)
    assert len(row) == 7
