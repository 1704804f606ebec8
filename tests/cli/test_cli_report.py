"""`uwm eval --html` and the page of `uwm edit`, as the terminal writes them."""

from __future__ import annotations

import json
import re

import pytest
from terminal import ALL_OF_CALIB, done, refused

from uwm.report import html_report


def undated(page):
    """A page without the one line that says when and with what it was made."""
    lines = page.splitlines()
    assert sum(line.startswith('<p id="made">Made ') for line in lines) == 1
    return [line for line in lines if not line.startswith('<p id="made">')]


def test_edit_writes_the_page_of_its_manifest(made):
    manifest = json.loads((made / "edited" / "uwm.json").read_text("utf-8"))
    page = (made / "edited" / "report.html").read_text("utf-8")
    assert page == html_report(manifest)
    assert f'<p id="made">Made on {manifest["run"]["date"]} with uwm {manifest["versions"]["uwm"]}, torch ' in page
    assert undated(page) == undated(html_report({key: value for key, value in manifest.items() if key != "run"}))


def test_eval_against_a_baseline(run_uwm, made, tiny_hf, tiny_set, tmp_path):
    arguments = ("--pairs", tiny_set, "--split", "test", "--baseline", tiny_hf, "--html", tmp_path / "page.html")
    code, out, _ = run_uwm("eval", made / "edited", *arguments, "--require", "GS>=100", "--json", "--no-cache")
    assert code == 5
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<title>edited, measured by uwm against tiny-hf</title>" in page
    assert "On <bdi>tiny-set, test</bdi>: " in page
    found = json.loads(out)
    share = f"{found['requirements'][0]['found']:.1f}"
    assert f'<td>{share} %</td><td><strong class="loss">not met</strong></td>' in page
    mean, low, high = (f"{100 * value:.1f}" for value in found["model"]["figures"]["P_ts"])
    assert f'{mean} <span class="interval">[{low}, {high}]</span>' in page
    for secret in (tiny_set.parent, tiny_hf.parent, made, tmp_path, "a picture of"):
        assert str(secret) not in page


def test_eval_of_one_model_and_again_over_the_same_file(run_uwm, tiny_hf, tiny_set, tmp_path):
    arguments = ("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", "--html", tmp_path / "page.html")
    done(run_uwm(*arguments, "--no-cache"))
    first = (tmp_path / "page.html").read_text("utf-8")
    assert "nothing to compare it with" in first
    assert '<p id="made">Made on 2' in first
    done(run_uwm(*arguments, "--no-cache"))
    assert undated((tmp_path / "page.html").read_text("utf-8")) == undated(first)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_model_against_itself_shows_no_change(run_uwm, tiny_hf, tiny_set, tmp_path):
    arguments = ("--pairs", tiny_set, "--split", "test", "--baseline", tiny_hf, "--html", tmp_path / "page.html")
    done(run_uwm("eval", tiny_hf, *arguments, "--no-cache"))
    page = (tmp_path / "page.html").read_text("utf-8")
    verdict = "Too few pairs for a verdict: 8 of 50."
    assert verdict in page
    assert not re.search(r'<strong class="(gain|loss)">', page)


@pytest.mark.parametrize("place", ["set", "folder"])
def test_a_page_over_an_input_or_a_folder_is_refused(place, run_uwm, tiny_hf, tiny_set, tmp_path):
    target = {"set": tiny_set / "page.html", "folder": tmp_path}[place]
    refused(run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--html", target), 2, str(target), "choose")


def test_examples_are_shown_when_asked_for(run_uwm, tiny_hf, tiny_set, tmp_path):
    arguments = ("edit", tiny_hf, "--calib", tiny_set, *ALL_OF_CALIB, "-o", tmp_path / "out")
    assert "written to" in done(run_uwm(*arguments, "--show-examples"))
    assert "a picture of" in (tmp_path / "out" / "report.html").read_text("utf-8")
