"""Backends are found by entry points of what is really installed; a broken plug-in is named with its distribution."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from distributions import entries, lines, python

from uwm.backends import Backend, TrainingSettings, find_backends
from uwm.comparison.methods import parse_methods
from uwm.errors import BadInput
from uwm.finetuning import find_backend

GROUP = "uwm.backends"
OURS = ("safe-clip", "safer-clip", "safer-clip-fixed", "shield-clip")
LIST = "import uwm.backends as b; print(b.__file__); [print(n, x.source) for n, x in b.find_backends().items()]"
USE = """
import torch, torch.nn.functional as F
from uwm.backends import find_backends
from uwm.embedding import Embeddings
backend = find_backends()["captions-only"]
sides = Embeddings(*(F.normalize(torch.randn(6, 4), dim=1) for _ in range(4)))
objective = backend.objective(sides, [])
student = Embeddings(*(side[2:5] for side in vars(sides).values()))
terms = objective.terms(student, objective.rows(1)[2:5])
assert terms.keys() == backend.settings.weights.keys(), terms
print(float(terms["keep"]) < 1e-6 < float(terms["redirect"]))
"""


def test_ours_and_the_example_are_found_once_installed(installed, tmp_path):
    place, *found = lines(python(tmp_path, installed, "-c", LIST))
    assert Path(place).is_relative_to(installed)
    names = [line.split()[0] for line in found]
    assert names == sorted(names)
    assert {*OURS, "captions-only"} <= {*names}
    assert "safer-clip SafeR-CLIP (Yousaf et al., arXiv 2511.16743, AAAI 2026)" in found
    assert "captions-only uwm's example of a third-party backend" in found


def test_the_example_is_a_loss(installed, tmp_path):
    assert lines(python(tmp_path, installed, "-c", USE)) == ["True"]


def test_every_entry_of_ours_is_a_backend_of_that_name():
    assert tuple(entries(GROUP)) == OURS
    for name, value in entries(GROUP).items():
        module, _, attribute = value.partition(":")
        backend: Backend = getattr(importlib.import_module(module), attribute)
        assert backend.name == name
        assert isinstance(backend.settings, TrainingSettings)


# ---------------------------------------------------------------- broken plug-ins

GOOD = """
from uwm.backends import TrainingSettings
class Plain:
    name, source = "NAME", "a test"
    settings = TrainingSettings(epochs=1, train_batch=2, learning_rate=1e-3, weights={})
    def objective(self, frozen, pairs): ...
BACKEND = Plain()
"""


def test_a_sound_plug_in_is_found(plug_in):
    plug_in(GROUP, "sound-plug", "zz-sound", GOOD.replace("NAME", "zz-sound"))
    assert find_backends()["zz-sound"].source == "a test"


BROKEN = {
    "raises": ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero; repair or uninstall"),
    "needs what is not there": ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
    "no Python": ("def (", "cannot be imported: SyntaxError: "),
    "no such object": ("", "cannot be imported: AttributeError: .*BACKEND"),
    "no source": (GOOD.replace("name, source =", "name, other ="), "expected an attribute 'source', a str"),
    "settings of another kind": (
        GOOD.replace("TrainingSettings(", "dict("),
        "expected an attribute 'settings', a TrainingSettings",
    ),
    "no objective": (GOOD.replace("def objective", "def other"), "expected a method 'objective'"),
    "another name": (
        GOOD.replace("NAME", "another"),
        "calls itself 'another'; its entry point must have the same name",
    ),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plug_in_is_named(text, message, plug_in, request):
    distribution = f"broken-{[*BROKEN].index(request.node.callspec.id)}"
    plug_in(GROUP, distribution, "zz-broken", text.replace("NAME", "zz-broken"))
    with pytest.raises(BadInput, match=rf"backend 'zz-broken' of {distribution} \(.*:BACKEND\).*{message}") as caught:
        find_backends()["zz-broken"]
    assert "\n" not in str(caught.value)


def test_two_of_one_name_name_both(plug_in):
    for distribution in ("twin-b", "twin-a"):
        plug_in(GROUP, distribution, "zz-twin", GOOD.replace("NAME", "zz-twin"))
    with pytest.raises(BadInput, match="two backends are called 'zz-twin', of twin-a and twin-b; uninstall one"):
        find_backends()["zz-twin"]


def test_a_broken_plug_in_hinders_no_other(plug_in):
    plug_in(GROUP, "broken-plug", "zz-broken", "1 / 0")
    plug_in(GROUP, "sound-plug", "zz-sound", GOOD.replace("NAME", "zz-sound"))
    for distribution in ("twin-b", "twin-a"):
        plug_in(GROUP, distribution, "zz-twin", GOOD.replace("NAME", "zz-twin"))
    found = find_backends()
    assert [*found][-3:] == ["zz-broken", "zz-sound", "zz-twin"]
    assert find_backend("safe-clip").name == "safe-clip"
    assert parse_methods(["safe-clip,zz-sound"], found)
    with pytest.raises(BadInput, match="no method is called 'zz-no'.*zz-broken, zz-sound, zz-twin"):
        parse_methods(["zz-no"], found)
    with pytest.raises(BadInput, match="backend 'zz-broken' of broken-plug .* cannot be imported"):
        parse_methods(["zz-broken"], found)
