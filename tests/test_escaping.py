"""Text from outside is escaped for each kind of output, by one function of each."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import xml.etree.ElementTree as ET

import pytest
import yaml

from uwm import escaping

ESCAPE, RESET, TURNED = "\x1b[31mred\x1b[0m", "\x1bc", "\u202egnp.exe"


@pytest.mark.parametrize("text", ["a\nb", "a\rb", ESCAPE, "\x9b31m", TURNED, "a\u200fb", "\udcff", "a\u2028b", "\0"])
def test_what_steers_a_terminal_is_replaced(text):
    shown = escaping.clean(text)
    assert "\ufffd" in shown
    assert len(shown) == len(text)
    assert shown.isprintable()


def test_what_people_write_stays():
    for text in ("sét – τ", "سلاح", "武器", "👨‍👩‍👧", "openai/clip-vit-base-patch32"):
        assert escaping.clean(text) == escaping.terminal(text) == text


@pytest.mark.parametrize(
    "text", ["::error::gone", "  ::set-env name=A::b", "a\n::warning::b", "see ##[error]b", "##vso[task.x]b"]
)
def test_no_line_is_a_command_to_a_ci(text):
    for line in escaping.terminal(text).split("\n"):
        assert not line.lstrip().startswith("::")
        assert not re.search(r"##\w*\[", line)


def test_json_has_the_same_values_and_steers_no_terminal():
    value = {"name": [ESCAPE, "\x9b", TURNED, "\udcff", "a\u2028b", "##[error]x", "sét"]}
    text = escaping.json_text(json.dumps(value, indent=2, ensure_ascii=False))
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.split("\n"))
    assert "sét" in text
    assert "##[" not in text


def test_markdown_shows_a_name_as_it_is():
    assert escaping.markdown("a|b\n<script>`x`*_") == r"a\|b" + "\ufffd" + r"\<script>\`x\`\*\_"
    assert escaping.markdown("[a](javascript:x)") == r"\[a]\(javascript:x)"
    assert escaping.markdown("12.3 [10.1, 14.4]") == "12.3 [10.1, 14.4]"
    assert escaping.readable_markdown(r"a\|b_c <i> [1](x)") == r"a\\\|b_c \<i> [1]\(x)"


@pytest.mark.parametrize("text", ["a", "a`b", "``", "a\n```\nb"])
def test_a_code_span_ends_where_the_name_does(text):
    shown = escaping.code(text)
    fence = re.match("`+", shown)[0]
    assert shown.endswith(fence)
    assert fence not in shown[len(fence) : -len(fence)]
    assert "\n" not in shown


@pytest.mark.parametrize("text", ["=cmd|'/C calc'!A0", "+1", "-1", "@sum(a)", " =1", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text):
    out = io.StringIO()
    csv.writer(out).writerow([escaping.csv_cell(text)])
    ((cell,),) = csv.reader(io.StringIO(out.getvalue()))
    assert cell.startswith("'")
    assert escaping.csv_cell("safe-clip = 1") == "safe-clip = 1"


def test_tex_has_no_command_of_a_name():
    assert escaping.tex("\\input{/etc/passwd}\x1b") == r"\textbackslash{}input\{/etc/passwd\}" + "\ufffd"


def test_xml_holds_every_name():
    text = f"{ESCAPE}\ufffe\udcff <a> & ]]> \u202e\n"
    element = ET.Element("a")
    element.text = escaping.xml(text)
    assert ET.fromstring(ET.tostring(element)).text == "\ufffd[31mred\ufffd[0m\ufffd\ufffd <a> & ]]> \ufffd\n"


def test_a_card_s_yaml_holds_every_name():
    text = escaping.clean(f"a: {ESCAPE}\n---\n- b")
    assert yaml.safe_load(yaml.safe_dump({"name": text})) == {"name": text}
    assert "---\n" not in text


def test_github_gets_one_message():
    assert escaping.github(f"100 %\r\n::error::{RESET}") == "100 %25%0D%0A::error::\ufffdc"


def test_a_name_is_no_path():
    assert escaping.file_part("../../etc\\x\ny") == ".._.._etc_x\ufffdy"


def test_messages_of_logs_are_one_line():
    record = logging.LogRecord("uwm", logging.WARNING, "", 0, "removing %s", (f"a\n::error::{RESET}",), None)
    assert escaping.CleanLines("%(name)s: %(message)s").format(record) == "uwm: removing a\ufffd::error::\ufffdc"


def test_a_message_of_several_lines_is_one():
    assert escaping.one_line("Missing:\n\ta,\n\tb\x1b") == "Missing: a, b\ufffd"
