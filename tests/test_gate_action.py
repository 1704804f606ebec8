"""The step for GitHub and its script, and the container: what they run is what the guides say, and the gate holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from documents import README, ROOT, blocks, commands, flags_of

from uwm.expressions import parse_requirements

ACTION = ROOT / "examples" / "github_action"
DOCKER = ROOT / "examples" / "docker"
SETTINGS = yaml.safe_load((ACTION / "action.yml").read_text("utf-8"))
SCRIPT = (ACTION / "gate.sh").read_text("utf-8")
STEPS = {step.get("name", step.get("uses")): step for step in SETTINGS["runs"]["steps"]}
INSTALLING = [str(c).removeprefix(".venv/bin/") for c in commands(README.read_text("utf-8")) if "whl/cpu" in str(c)]


@pytest.fixture
def gate(tmp_path, made, tiny_hf, tiny_set):
    """Run the script as the step does: variables of the gate -> (exit code, all that it printed)."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "uwm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uwm "$@"\n')
    program.chmod(0o755)
    fixed = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GATE_MODEL": str(made / "edited"),
        "GATE_BASELINE": str(tiny_hf),
        "GATE_PAIRS": str(tiny_set),
        "GATE_SPLIT": "test",
        "GATE_JUNIT": str(tmp_path / "gate.xml"),
    }

    def run(**given: str) -> tuple[int, str]:
        environment = {**os.environ, **fixed, **given}
        done = subprocess.run(["bash", str(ACTION / "gate.sh")], env=environment, cwd=tmp_path, capture_output=True,
                              text=True, check=False)  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def verdicts(tmp_path) -> dict[str, bool]:
    """Requirement -> whether it is met, of the JUnit file."""
    cases = ET.parse(tmp_path / "gate.xml").getroot()[0]
    return {case.get("name"): case.find("failure") is None for case in cases.iter("testcase")}


def test_a_checkpoint_that_meets_its_requirements_passes(gate, tmp_path):
    code, said = gate(GATE_REQUIRE="R1>=-100pt\n\n  \nGS>=0\n")
    assert (code, "::error" in said) == (0, False), said
    assert "PASS" in said
    assert verdicts(tmp_path) == {"R1_ts_vs>=-100pt": True, "R1_vs_ts>=-100pt": True, "GS>=0": True}
    assert "| met |" in (tmp_path / "summary.md").read_text("utf-8")


def test_one_that_does_not_fails_with_an_annotation(gate, tmp_path):
    code, said = gate(GATE_REQUIRE="GS>=0\nPU.low>+90pt")
    assert code == 5, said
    assert "::error title=uwm eval::" in said
    assert verdicts(tmp_path) == {"GS>=0": True, "PU.low>+90pt": False}
    assert "| not met |" in (tmp_path / "summary.md").read_text("utf-8")


def test_a_gate_without_requirements_is_a_mistake(gate):
    code, said = gate(GATE_REQUIRE=" \n")
    assert (code, said.startswith("::error title=uwm gate::no requirement is given")) == (2, True)


@pytest.mark.parametrize("name", ["GATE_REQUIRE", "GATE_MODEL", "GATE_PAIRS"])
def test_values_are_never_run_by_the_shell(name, gate, tmp_path):
    code, _ = gate(**{"GATE_REQUIRE": "GS>=0", name: "$(touch hacked); touch hacked `touch hacked`"})
    assert (code, (tmp_path / "hacked").exists()) == (2, False)


def test_inputs_reach_the_steps_by_variables_only():
    """Of a `run` that holds an expression, the shell would run what the input says."""
    inputs = set(SETTINGS["inputs"])
    assert [step["run"] for step in STEPS.values() if "${{" in step.get("run", "")] == []
    assert set(re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", json.dumps(SETTINGS))) == inputs
    given = {name.removeprefix("GATE_").lower().replace("_", "-") for name in STEPS["Gate"]["env"]}
    assert given == inputs - {"source"}
    assert set(re.findall(r"\bGATE_[A-Z_]+\b", SCRIPT)) == STEPS["Gate"]["env"].keys()


def test_the_script_has_flags_of_uwm_eval():
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"^#.*$", "", SCRIPT, flags=re.M)))
    assert len(flags) == 9
    assert flags <= flags_of("eval")


def test_the_guide_shows_inputs_that_there_are():
    (block,) = blocks((ROOT / "examples" / "guides" / "gate-in-ci.md").read_text("utf-8"), "yaml")
    (step,) = yaml.safe_load(block)
    assert set(step["with"]) <= set(SETTINGS["inputs"])
    assert {name for name, about in SETTINGS["inputs"].items() if about.get("required")} <= set(step["with"])
    assert [one.text for line in step["with"]["require"].splitlines() for one in parse_requirements(line, True)]
    assert (ROOT / step["uses"].partition("uwm/")[2].partition("@")[0] / "action.yml").is_file()


def test_the_command_of_the_guide_runs(gate):
    """As it stands, but for the places that the fixture names."""
    (command,) = [
        c for c in commands((ROOT / "examples" / "guides" / "gate-in-ci.md").read_text("utf-8")) if c.words[0] == "bash"
    ]
    assert (ROOT / command.words[1]).samefile(ACTION / "gate.sh")
    assert set(command.environment) <= STEPS["Gate"]["env"].keys()
    code, said = gate(GATE_REQUIRE=command.environment["GATE_REQUIRE"], GATE_SPLIT="")
    assert code in (0, 5), said


# ---------------------------------------------------------------- what is installed


def test_the_step_installs_as_the_readme_says():
    lines = STEPS["Install"]["run"].splitlines()
    assert lines[0] == INSTALLING[0]
    assert lines[1] == 'pip install "${GATE_SOURCE:-$GITHUB_ACTION_PATH/../..}"'
    assert (ACTION / ".." / ".." / "setup.cfg").is_file()


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, each with what it is given."""
    lines = (DOCKER / "Dockerfile").read_text("utf-8").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def test_the_container_installs_as_the_readme_says():
    instructions = dockerfile()
    assert ("ARG", "TORCH=cpu") in instructions
    run = [text.replace(" --no-cache-dir", "") for name, text in instructions if name == "RUN"]
    assert run[0].replace("${TORCH}", "cpu") == INSTALLING[0]
    assert run[1] == "cd /opt/uwm && pip install ."
    assert [name for name, _ in instructions].index("USER") > [name for name, _ in instructions].index("RUN")


def test_the_container_has_what_the_installation_needs():
    copied = {name for kind, text in dockerfile() if kind == "COPY" for name in text.split()[:-1]}
    assert copied == {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "uwm", "calibration"}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert {name.removeprefix("!") for name in ignored if name.startswith("!")} == copied
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    assert ("ENTRYPOINT", '["uwm"]') in dockerfile()
    assert "uwm = uwm.__main__:main" in settings["options.entry_points"]["console_scripts"]
    assert all(ROOT / path for path in copied)


def test_the_commands_of_the_container_are_those_of_the_guide():
    text = (ROOT / "examples" / "guides" / "install.md").read_text("utf-8")
    guide = [str(c) for c in commands(text) if c.words[:2] == ("docker", "build")]
    head = re.findall(r"^#     (docker build .*)$", (DOCKER / "Dockerfile").read_text("utf-8"), re.M)
    assert guide == head
    assert all(Path(line.split()[3]) == Path("examples/docker/Dockerfile") for line in head)
