"""Expressions drawn by hypothesis, and short ways to read and to show requirements."""

from __future__ import annotations

from hypothesis import strategies as st

from uwm.expressions import parse_requirements
from uwm.figures import OF_DATA_SETS, PAIRED

# Without p and %, so that no name has a unit and a comma, which ends a term of a budget.
NAMES = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Z"), blacklist_characters="<>=%*p"), min_size=1)
PLACES = st.one_of(st.just(""), st.just("@*"), NAMES.map("@{}".format))
DATA_SETS = st.one_of(st.just(""), st.just(":*"), NAMES.map(":{}".format))
SPACES = st.sampled_from(["", " "])
NUMBERS = st.decimals(0, 200, allow_nan=False, places=2).map("{:f}".format)


@st.composite
def expressions(draw, bounds=("", ".low", ".high")):
    if draw(st.booleans()):
        return draw(st.sampled_from([*OF_DATA_SETS, "zero_shot"])) + draw(DATA_SETS)
    return draw(st.sampled_from([*PAIRED, "R1"])) + draw(st.sampled_from(bounds)) + draw(PLACES)


def require(text, has_baseline=True):
    (found,) = parse_requirements(text, has_baseline)
    return found


def texts(requirements):
    return [requirement.text for requirement in requirements]
