"""The few lines that verbs print: within 80 columns, coloured only on a terminal, with a command that makes sense."""

from __future__ import annotations

import io
import re
import shlex
import sys

import click
import pytest

from uwm.cli.next_steps import after_edit, after_evaluation
from uwm.cli.terminal import again, gate_lines, show_lines, show_table, wrapped
from uwm.evaluating import APART, EvalRecipe
from uwm.report import Line

LONG = Line("COST", "zero-shot on seen −16.1 points (random −5.9): 67.1 → 51.1 %; R@1 Ts→Vs −6.2 points (random −1.5)")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What a terminal is sent."""

    def show(*lines, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", Terminal())
        show_lines(lines)
        return sys.stdout.getvalue()

    return show


TABLE = [["", "before", "uwm"], ["GS", "0.2 [0.0, 0.8]", "1.0 [0.2, 2.0]"], ["\x1b[31mred", "1", "2"]]


def test_a_table_is_drawn_on_a_terminal_and_folded_where_there_is_no_room(shown):
    shown()
    show_table("test, 400 pairs", TABLE)
    rows = sys.stdout.getvalue().splitlines()
    assert any("test, 400 pairs" in row for row in rows)
    assert any(set(row.strip()) == {"─"} for row in rows)
    assert any(re.search(r"GS +0\.2 \[0\.0, 0\.8\] +1\.0 \[0\.2, 2\.0\]", row) for row in rows)
    assert "\x1b[31m" not in sys.stdout.getvalue()
    shown(COLUMNS="24")
    show_table("test, 400 pairs", TABLE)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue())
    assert max(map(len, plain.splitlines())) <= 24


def test_a_table_is_plain_where_there_is_no_terminal(capsys):
    show_table("test, 400 pairs", TABLE[:2])
    expected = "\ntest, 400 pairs\n            before             uwm\nGS  0.2 [0.0, 0.8]  1.0 [0.2, 2.0]\n"
    assert capsys.readouterr().out == expected


def test_a_line_is_wrapped_below_its_label():
    rows = wrapped(LONG)
    assert [row[:9] for row in rows] == ["COST     ", "         "]
    assert max(map(len, rows)) <= 80
    assert " ".join(row[9:] for row in rows) == LONG.text
    assert max(map(len, wrapped(LONG, 40))) <= 40


def test_a_path_is_never_cut_in_two():
    path = "/a/very/long/" + "path/" * 20
    assert any(path in row for row in wrapped(Line("DONE", f"written to {path} (1 s)")))


def test_a_wrapped_command_is_one_for_a_shell():
    words = ["uwm", "eval", "a folder", "--require", "PU.low>+0pt", *[f"--flag-{n}" for n in range(12)]]
    rows = wrapped(Line("NEXT", shlex.join(words)))
    assert len(rows) > 1
    assert max(map(len, rows)) <= 80
    assert shlex.split("\n".join(row[9:] for row in rows).replace("\\\n", "")) == words


def test_names_cannot_steer_the_terminal():
    (row,) = wrapped(Line("DONE", "a\x1b[2Jb\u202ec"))
    assert row == "DONE     a\ufffd[2Jb\ufffdc"


def test_colour_is_for_terminals_that_want_it(shown, capsys):
    lines = (Line("VERDICT", "Safer; it is.", 1), Line("GATE", "FAIL", -1))
    coloured = shown(*lines)
    assert "\x1b[1;32m" in coloured
    assert "\x1b[1;31m" in coloured
    plain = shown(*lines, NO_COLOR="1")
    assert "\x1b[1m" in plain, "bold stays"
    assert "\x1b[1;32m" not in plain
    assert "\x1b" not in shown(*lines, TERM="dumb")


def test_a_terminal_shows_the_same_rows_as_a_file(shown, monkeypatch, capsys):
    assert shown(LONG, TERM="dumb").rstrip("\n").split("\n") == wrapped(LONG)
    narrow = re.sub(r"\x1b\[[\d;]*m", "", shown(LONG, COLUMNS="50"))
    assert narrow.splitlines() == wrapped(LONG, 50)
    monkeypatch.undo()
    show_lines([LONG])
    assert capsys.readouterr().out == "\n".join(wrapped(LONG)) + "\n"


def test_what_failed_comes_first_below_the_gate():
    assert gate_lines("", []) == []
    rows = [["GS>=9", "found 3.0 %", "not met"], ["PU>=1", "found 2.0 %", "met"]]
    first, failed, met = gate_lines("FAIL: 1 of 2 requirements not met", rows)
    assert (first.label, first.text, first.sign) == ("GATE", "FAIL: 1 of 2 requirements not met", -1)
    assert [(one.text, one.sign) for one in (failed, met)] == [
        ("not met  GS>=9: found 3.0 %", -1),
        ("met      PU>=1: found 2.0 %", 0),
    ]


# ---------------------------------------------------------------- what to do next


@pytest.fixture
def running():
    """As if a command were running with these words."""

    def run(text, make, *arguments):
        with click.Context(click.Command("uwm"), obj=shlex.split(text)):
            return make(*arguments)

    return run


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("edit m --method uwm -o out", "uwm edit m --x y"),
        ("edit m --method=uwm --dry-run -o out --split a", "uwm edit m --split a --x y"),
        ("edit m --dry_run", "uwm edit m --x y"),
        ("edit 'my model'", "uwm edit 'my model' --x y"),
    ],
)
def test_the_same_command_with_other_flags(given, expected, running):
    assert running(given, again, ["--x", "y"], ("--method", "-o"), ("--dry-run",)) == expected


def facts(verdict="Safer; no certain loss of accuracy.", sign=1, pairs=400, better=()):
    return {"verdict": verdict, "sign": sign, "pairs": pairs, "better": [{"method": name} for name in better]}


COMMAND = "edit m --calib set --method uwm --text-mass 0.1 --set alpha=2 -o out --overwrite"


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({"verdict": facts()}, "uwm eval out --pairs PAIRS --baseline m --require 'PU.low>+0pt'"),
        ({"verdict": facts(pairs=8)}, "uwm eval out --pairs PAIRS --baseline m"),
        ({}, "uwm eval out --pairs PAIRS --baseline m"),
        ({"verdict": facts(better=["repel"])}, "uwm edit m --calib set --method repel -o out-repel"),
        ({"verdict": facts(sign=0)}, "uwm edit m --calib set --max-loss 2% -o out-within"),
        ({"verdict": facts("Safer; it costs accuracy.", 0)}, "uwm edit m --calib set --max-loss 2% -o out-within"),
        ({"verdict": facts(sign=0), "budget": {}}, "uwm eval out --pairs PAIRS --baseline m --require 'PU.low>+0pt'"),
        (
            {"towers": {"not_edited": {"vision": "add --safe-images F"}}},
            "uwm edit m --calib set --method uwm --text-mass 0.1 --set alpha=2 --safe-images FOLDER "
            "--unsafe-images FOLDER -o out-both",
        ),
    ],
)
def test_what_comes_after_an_edit(manifest, expected, running):
    assert running(COMMAND, after_edit, {"towers": {"not_edited": {}}, **manifest}, "m", "out") == expected


@pytest.mark.parametrize(
    ("command", "settings", "output", "expected"),
    [
        ("edit m --from uwm.json -o out", {}, "out", "uwm eval out --pairs PAIRS --baseline m"),
        ("edit m --from=uwm.json --dry-run", {}, None, "uwm edit m --from=uwm.json -o OUT"),
        ("edit m --until-stable 0.98 -o out", {}, "out", "uwm edit m --max-loss 2% -o out-within"),
        (
            "edit m --for diffusion --dry-run",
            {"purpose": "diffusion"},
            None,
            "uwm edit m --for diffusion -o OUT",
        ),
    ],
)
def test_what_comes_after_an_edit_that_takes_no_other_flags(command, settings, output, expected, running):
    made = {"towers": {"not_edited": {}}, "verdict": facts(sign=0), "settings": settings}
    assert running(command, after_edit, made, "m", output) == expected


def test_a_baseline_is_opened_as_the_model_was(running):
    command = "edit m.pt --arch ViT-B-32 --key=model --max-loss 2% -o out"
    made = {"towers": {"not_edited": {}}, "verdict": facts(pairs=8), "budget": {}}
    measured = "uwm eval out --pairs PAIRS --baseline m.pt --arch ViT-B-32 --key=model"
    assert running(command, after_edit, made, "m.pt", "out") == measured


def test_after_a_dry_run_the_edit_is_written(running):
    made = {"towers": {"not_edited": {}}, "verdict": facts()}
    assert running("edit m --calib set --dry-run", after_edit, made, "m", None) == "uwm edit m --calib set -o OUT"


def test_what_comes_after_an_evaluation(running):
    def after(failed=(), pairs=400, command="eval out --pairs set", **given):
        return running(command, after_evaluation, facts(pairs=pairs), EvalRecipe("out", "set", **given), failed)

    assert after() == "uwm eval out --pairs set --baseline UNEDITED"
    assert after(baseline="m") == "uwm eval out --pairs set --require 'PU.low>+0pt'"
    assert after(baseline="m", requirements=("GS>=1",)) == "uwm eval out --pairs set --all-figures"
    assert after(baseline="m", pairs=8) == "uwm eval out --pairs PAIRS --baseline m"
    assert after([APART], baseline="m") == "uwm eval out --pairs PAIRS"
    assert after(["GS>=1", APART], baseline="m").startswith("uwm edit m ")
    assert after(["GS>=1"], baseline="m", requirements=("GS>=1",)) == "uwm edit m --calib PAIRS --max-loss 2% -o OUT"
