"""Row 9: names of strangers reach no terminal, page, table or CI as anything but text."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from documents_by_hand import document
from made_up_front import made_up_front
from safetensors.torch import load_file, save_file

from uwm import escaping
from uwm.cli.terminal import show_lines
from uwm.comparison.figures import Figure, Row
from uwm.comparison.page import comparison_page
from uwm.comparison.plot import draw
from uwm.comparison.table import csv_table, latex, markdown, terminal
from uwm.figures import PAIRED
from uwm.report import Line, model_card
from uwm.tuning.table import csv_table as front_csv

NASTY = (
    "\x1b]0;title\x07\x1b[2J",
    "a\r\nb",
    "::error::gone",
    "x | y | z",
    "=cmd()",
    "<script>alert(1)</script>",
    "\u202egnp.exe",
    r"\input{secret}",
    "```\n# heading",
    "##[error]x",
)  # fmt: skip


@pytest.fixture
def nasty_set(tiny_set, tmp_path):
    """Whose concepts, captions and split are called so."""
    folder = tmp_path / "set"
    shutil.copytree(tiny_set, folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["concept"] = NASTY[number % len(NASTY)]
        row["safe_text"] += f" {NASTY[number % len(NASTY)]}"
        row["id"] += NASTY[number % len(NASTY)]
        row["split"] = "calib" if row["split"] == "calib" else "::error::\x1b[2Jtest\n::error::"
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture
def nasty_model(tmp_path, source):
    """With a tensor of each name that a checkpoint may have, and a copy in which they differ."""
    state = {name: t.clone() for name, t in load_file(source / "model.safetensors").items()}  # it is written over
    other = tmp_path / "other"
    shutil.copytree(source, other)
    for folder, factor in ((source, 1), (other, 2)):
        extra = {name: factor * state["logit_scale"].clone().reshape(1) for name in NASTY}
        save_file(state | extra, folder / "model.safetensors", metadata={"format": "pt"})
    return source, other


def is_plain(text):
    """Nothing steers the terminal, and no line is a command to a CI."""
    for line in text.split("\n"):
        assert line.isprintable(), line
        assert not line.lstrip().startswith("::"), line
        assert not re.search(r"##\w*\[", line)
    return True


def tags_of(page):
    """Every element of a page."""
    found = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda name, _: found.add(name)
    parser.feed(page)
    return found


def test_f09_a_nasty_set_is_measured(nasty_set, tiny_hf, run_uwm, tmp_path):
    files = {name: tmp_path / f"report.{name}" for name in ("html", "junit", "markdown")}
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    code, out, err = run_uwm("eval", tiny_hf, "--pairs", nasty_set, "--by-concept", "--no-cache", *flags)
    assert (code, is_plain(out), is_plain(err)) == (0, True, True)
    assert "�::error::gone " in out
    summary = files["markdown"].read_text("utf-8")
    assert is_plain(summary)
    tables = [line for line in summary.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {3, 12}
    assert r"| \`\`\`�# heading |" in summary
    assert not re.search(r"(?<!\\)<script", summary)
    ET.parse(files["junit"])
    page = files["html"].read_text("utf-8")
    assert all(line.isprintable() for line in page.split("\n"))
    assert "script" not in tags_of(page)


def test_f09_a_nasty_set_is_checked(nasty_set, run_uwm):
    for more in ((), ("--json",)):
        _, out, err = run_uwm("calib-check", nasty_set, *more)
        assert is_plain(out)
        assert is_plain(err)
        assert "cmd()" in out


def test_f09_a_nasty_set_edits_and_its_card_is_text(nasty_set, tiny_hf, run_uwm, out):
    code, told, err = run_uwm("edit", tiny_hf, "--calib", nasty_set, "-o", out, "--all-figures", "--show-examples")
    assert (code, is_plain(told), is_plain(err)) == (0, True, True)
    card = (out / "README.md").read_text("utf-8")
    assert is_plain(card)
    assert card.count("\n---\n") == 1
    page = (out / "report.html").read_text("utf-8")
    assert all(line.isprintable() for line in page.split("\n"))
    assert "script" not in tags_of(page)


def test_f09_an_error_that_names_them_is_one_line(nasty_set, tiny_hf, run_uwm):
    wrong = "::error::\x1b[2J\n::error::no"
    code, out, err = run_uwm("eval", tiny_hf, "--pairs", nasty_set, "--split", wrong)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert is_plain(err)
    code, out, err = run_uwm("eval", f"{wrong}/model", "--pairs", nasty_set)
    assert (code, err.count("\n"), is_plain(err)) == (2, 1, True)
    code, out, err = run_uwm("eval", tiny_hf, "--pairs", nasty_set, "--workers", wrong)
    assert (code, err.count("\n"), is_plain(err)) == (2, 1, True)
    code, out, err = run_uwm("eval", tiny_hf, f"--no{wrong}")
    assert (code, err.count("\n"), is_plain(err)) == (2, 1, True)


def test_f09_a_wrapped_line_does_not_begin_with_a_command(capsys):
    show_lines([Line("DONE", "x" * 70 + " ::error::gone ##[error]x")])
    assert is_plain(capsys.readouterr().out)


def test_f09_settings_and_methods_are_text_in_files(tmp_path):
    manifest = document()
    manifest["settings"]["calib"] = "\x9b2J\u202e"
    assert is_plain(model_card(manifest, {}))
    front = made_up_front(12)
    for point in front["points"]:
        point["method"] = "=cmd()"
    assert not any(cell[:1] == "=" for row in csv.reader(io.StringIO(front_csv(front))) for cell in row)


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_f09_nasty_tensors_are_looked_at(nasty_model, run_uwm, more):
    first, second = nasty_model
    code, out, _ = run_uwm("diff", first, second, *more)
    assert (code, is_plain(out)) == (0, True)
    assert "cmd()" in out
    assert len(out.splitlines()) == len(NASTY) + 1 or more
    code, out, _ = run_uwm("inspect", first, *more)
    assert (code, is_plain(out)) == (0, True)


def test_f09_a_comparison_of_nasty_methods_is_text():
    value = Figure((0.3, 0.2, 0.4), (0.3, 0.3), (0.0, -0.1, 0.1))
    rows = [Row(name, None, dict.fromkeys(PAIRED, value), runs=1) for name in NASTY]
    tables, pairs = dict.fromkeys(NASTY[:4], rows), dict.fromkeys(NASTY[:4], 8)
    for text in (terminal(tables, pairs), markdown(tables, pairs, NASTY), latex(tables, pairs)):
        assert all(line.isprintable() for line in text.split("\n"))
    assert r"\input" not in latex(tables, pairs)
    assert is_plain(escaping.terminal(terminal(tables, pairs)))
    lines = [line for line in markdown(tables, pairs, NASTY).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    cells = [cell for row in csv.reader(io.StringIO(csv_table(tables))) for cell in row]
    assert [cell for cell in cells if cell[:1] in "=@\t\r" and cell] == []
    assert all(cell.isprintable() for cell in cells)
    ET.fromstring(draw(rows, NASTY[0])["svg"])
    about = {"settings": {"model": NASTY[0], "methods": [*NASTY]}, "versions": {}, "model_sha256": {NASTY[5]: "ab"}}
    page = comparison_page(tables, pairs, NASTY, about)
    assert all(line.isprintable() for line in page.split("\n"))
    assert "script" not in tags_of(page)
