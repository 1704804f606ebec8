"""Methods as text: what is read from it, and what is said of text that cannot be read."""

from __future__ import annotations

import pytest

from uwm.backends import find_backends
from uwm.comparison.methods import CONTROL, Edit, Given, Method, Train, parse_methods
from uwm.editing.editors import editor_names
from uwm.editing.entries.editor import RULES, VARIANTS
from uwm.errors import BadInput

BACKENDS = find_backends()


def edit(method: str = "uwm", control: bool = False, **settings) -> Edit:
    return Edit(method, tuple(sorted(settings.items())), control)


def parsed(*texts: str) -> list[Method]:
    return parse_methods(texts, BACKENDS)


def stages(text: str) -> tuple:
    none, method = parsed(text)
    assert none == Method("none", ())
    return method.stages


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("uwm", edit()),
        ("uwm:mass=0.1", edit(mass=0.1)),
        ("uwm:difference", edit(variant="difference")),
        ("uwm:ratio-of-means:top-fraction", edit(variant="ratio-of-means", rule="top-fraction")),
        ("uwm:text-mass=0.1:vision-mass=0.2:alpha=0", edit(text_mass=0.1, vision_mass=0.2, alpha=0.0)),
        ("uwm:text-layers=none:vision-layers=vision.*.fc2", edit(text_layers="none", vision_layers="vision.*.fc2")),
        ("grad-unsafe", edit(method="grad-unsafe")),
        ("grad-safe-clip:mass=0.01", edit(method="grad-safe-clip", mass=0.01)),
        ("random", edit("random")),
        ("magnitude:mass=0.1:unsafe-only", edit("magnitude", mass=0.1, variant="unsafe-only")),
        ("repel:strength=0.5:concept", edit("repel", strength=0.5, units="concept")),
        ("repel:control", edit("repel", control=True)),
        ("uwm:control:mass=0.1", edit(control=True, mass=0.1)),
        ("safe-clip", Train("safe-clip")),
        (
            "shield-clip:rank=4:learning-rate=1e-3:epochs=5:stop-on=recall",
            Train("shield-clip", (("epochs", 5), ("learning_rate", 1e-3), ("rank", 4), ("stop_on", "recall"))),
        ),
        ("mine=some/where", Given("some/where")),
        ("mine=hf-hub:org/name@v1", Given("hf-hub:org/name@v1")),
        ("mine=open_clip:ViT-B-32/openai", Given("open_clip:ViT-B-32/openai")),
        ("mine=a+b/c=d", Given("a+b/c=d")),
    ],
)  # fmt: skip
def test_a_stage(text, stage):
    assert stages(text) == (stage,)


def test_stages_one_after_another():
    assert stages("safe-clip:epochs=2+uwm:mass=0.1") == (Train("safe-clip", (("epochs", 2),)), edit(mass=0.1))
    assert stages("uwm+safe-clip+random") == (edit(), Train("safe-clip"), edit("random"))
    assert stages("mine=a+b/c+uwm+safe-clip") == (Given("a+b/c"), edit(), Train("safe-clip"))
    assert [m.label for m in parsed("mine=a+b/c+uwm:mass=0.2")] == ["none", "mine+uwm:mass=0.2"]


def test_several_with_commas_and_repeated():
    found = parsed("uwm, random ,none", "safe-clip")
    assert [m.label for m in found] == ["none", "uwm", "random", "safe-clip"]
    assert [m.trains for m in found] == [False, False, False, True]


def test_what_an_edit_has_unless_it_says_otherwise():
    default = {"text_layers": "none", "vision_layers": "fc1"}
    _, first, second, third = parse_methods(["uwm,random:vision-layers=fc2,repel"], BACKENDS, default)
    assert first.stages == (edit(**default),)
    assert second.stages == (edit("random", text_layers="none", vision_layers="fc2"),)
    assert third.stages == (edit("repel"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("best", ["'best': no method is called 'best'"]),
        ("uwm+best", ["no method is called 'best'"]),
        ("uwm:best", ["'uwm:best': 'best': expected NAME=VALUE"]),
        ("uwm:epochs=3", ["the method uwm has no such setting"]),
        ("uwm:mass", ["'mass': expected NAME=VALUE"]),
        ("uwm:mass=much", ["'much': expected"]),
        ("uwm:mass=2", ["mass 2.0: expected a number between 0 and 1"]),
        ("uwm:alpha=inf", ["--alpha", "expected a finite number"]),
        ("grad-unsafe:difference", ["grad-unsafe has no variants"]),
        ("safe-clip:mass=0.1", ["no setting of fine-tuning is called 'mass=0.1'"]),
        ("safe-clip:epochs=few", ["'safe-clip:epochs=few': expected int"]),
        ("=path", ["expected LABEL=CHECKPOINT"]),
        ("none=path", ["expected LABEL=CHECKPOINT"]),
        ("mine=", ["expected LABEL=CHECKPOINT"]),
        ("uwm,random,uwm", ["'uwm' is there twice"]),
        ("best,worst", ["'best'", "'worst'"]),
    ],
)
def test_one_error_tells_all_that_is_wrong_and_all_that_there_is(text, words):
    with pytest.raises(BadInput) as caught:
        parsed(text)
    message = str(caught.value)
    assert message.startswith("--methods: ")
    assert "\n" not in message
    for word in (
        *words,
        *editor_names(),
        CONTROL,
        *BACKENDS,
        *VARIANTS,
        *RULES,
        "LABEL=CHECKPOINT",
        "text-mass=",
        "epochs=",
    ):
        assert word in message


def test_nothing_is_nothing_to_compare():
    with pytest.raises(BadInput, match="nothing to compare"):
        parsed(" , ")
