"""Reading what ``--require``, ``--max-loss`` and ``--objective`` were given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..errors import BadInput
from ..figures import MEANS, PRESERVED, ZERO_SHOT, lower_is_better
from .expression import ZERO_SHOT_FIGURES, Expression
from .requirement import Requirement

BOTH_DIRECTIONS = {"R1": MEANS["R1_safe"]}  # short name -> the figures that it stands for
_EXPRESSION = (
    r"\s*(?P<expression>(?P<figure>\w+)(?:\.(?P<bound>low|high))?"
    r"(?:@(?P<concept>[^<>=\x00-\x1f]+?)|:(?P<data_set>[^<>=\x00-\x1f]+?))?)\s*"
)
EXPRESSION = re.compile(_EXPRESSION)
REQUIREMENT = re.compile(
    _EXPRESSION + r"(?P<sign>[<>]=?)\s*(?P<value>(?P<direction>[+-]?)[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>%|pt)?\s*"
)
NAMED_LOSS = re.compile(_EXPRESSION + r"=(?P<loss>[^<>=]*)")
LOSS = re.compile(r"\s*(?P<direction>[+-]?)(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>%|pt)?\s*")
COMMA = re.compile(r"(?:(?<=[0-9\s]%)|(?<=[0-9\s]pt))\s*,")  # a term ends with a unit; concepts may hold commas


def parse_requirements(text: str, has_baseline: bool) -> tuple[Requirement, ...]:
    """Read what ``--require`` was given; one requirement, or two where ``R1`` stands for both directions.

    ``GS>=4.5`` (percent), ``GS.low>=3`` (the low end of its interval), ``top1>=-2%`` (change in percent of the
    baseline's value), ``R1_ts_vs>=-2pt`` (points against the baseline), ``GS.low>=+0pt`` (the low end of the paired
    interval of that difference), ``P_vu@weapons>=10``, ``P_vu@*>=5`` (every concept), ``zero_shot>=-2%`` (the mean over
    data sets of top-1, of safe classes where a set names unsafe ones), ``top1:pets>=60`` (one data set),
    ``zero_shot:*>=-2%`` (every data set). ``>`` and ``<`` in their place are not met at the bound: ``GS.low>+0pt``.

    Raises:
        BadInput: Another form, a missing baseline, or a bound that does not exist.
    """
    return _requirements(text, f"--require {text!r}", has_baseline)


def parse_max_loss(text: str, data_sets: Sequence[str] = (), preserve: bool = False) -> tuple[Requirement, ...]:
    """Read what ``--max-loss`` was given: how much may be lost, as requirements.

    ``2%`` or ``1.5pt`` holds for every figure of knowledge: zero-shot accuracy of every data set, R@1 of safe queries
    in both directions, and what ``--preserve`` names. ``zero_shot=1pt`` holds for that figure and replaces what a loss
    without a figure says of it; ``R1_ts_vs.low>=-2pt`` is a requirement as it stands.

    Args:
        text: Terms with commas between.
        data_sets: Names of the zero-shot data sets that will be measured.
        preserve: Whether ``preserved`` will be measured.

    Returns:
        Requirements whose `text` `parse_requirements` reads.

    Raises:
        BadInput: Another form, or two losses without a figure.
    """
    everywhere, said = "", f"--max-loss {text!r}"
    named: list[Requirement] = []
    for term in COMMA.split(text):
        if not LOSS.fullmatch(term):
            named += _named(term)
        elif everywhere:
            raise BadInput(f"{said}: expected one loss for every figure, found {everywhere} and {term.strip()}")
        else:
            everywhere = _loss(term, f"--max-loss {term!r}")
    figures = _knowledge(data_sets, preserve, named) if everywhere else ()
    bare = [one for figure in figures for one in _requirements(f"{figure}>={_fall(everywhere, '-')}", said)]
    return tuple(dict.fromkeys([*bare, *named]))


def _named(term: str) -> tuple[Requirement, ...]:
    """The requirements of ``EXPRESSION=LOSS``, or of a requirement that is a change."""
    said = f"--max-loss {term!r}"
    if found := NAMED_LOSS.fullmatch(term):
        sign, direction = ("<=", "+") if lower_is_better(found["figure"]) else (">=", "-")
        return _requirements(f"{found['expression']}{sign}{_fall(_loss(found['loss'], said), direction)}", said)
    if found := REQUIREMENT.fullmatch(term):
        if not found["unit"]:
            raise BadInput(f"{said}: expected a change, such as GS>=-2pt; --require is for values")
        return _requirements(term, said)
    raise BadInput(
        f"{said}: expected LOSS, FIGURE=LOSS or a change, with commas between, such as 2%, R1=1pt or R1_ts_vs.low>=-2pt"
    )


def _loss(text: str, said: str) -> str:
    """A loss without spaces."""
    found = LOSS.fullmatch(text)
    if not found:
        raise BadInput(f"{said}: expected a loss after the =, such as 2% or 1.5pt")
    number = found["number"]
    if not found["unit"]:
        raise BadInput(f"{said}: write {number}% of the baseline's value, or {number}pt for points")
    if found["direction"]:
        raise BadInput(f"{said}: write {number}{found['unit']} for a loss of so much, without a sign")
    return f"{number}{found['unit']}"


def _fall(loss: str, direction: str) -> str:
    """A loss as the change of a requirement; a loss of nothing is ``+0pt``."""
    return f"{direction if re.search('[1-9]', loss) else '+'}{loss}"


def _knowledge(data_sets: Sequence[str], preserve: bool, named: Sequence[Requirement]) -> Iterator[str]:
    """The expressions that a loss without a figure is about: figures of knowledge that no term names."""
    own = [requirement.expression for requirement in named if not requirement.expression.concept]
    replaced = {expression.figure for expression in own if expression.data_set in ("", "*")}
    apart = {expression.data_set for expression in own if expression.figure == ZERO_SHOT}
    if data_sets and ZERO_SHOT not in replaced:
        yield from (f"{ZERO_SHOT}:{name}" for name in (data_sets if apart else ["*"]) if name not in apart)
    yield from (name for name in BOTH_DIRECTIONS["R1"] if name not in replaced)
    if preserve and PRESERVED not in replaced:
        yield PRESERVED


def parse_objective(text: str) -> Expression:
    """Read what ``--objective`` was given: an expression, such as ``safety`` or ``GS.low``.

    Raises:
        BadInput: Another form, a bound that does not exist, or a name that stands for two figures.
    """
    found, said = EXPRESSION.fullmatch(text), f"--objective {text!r}"
    if not found:
        raise BadInput(f"{said}: expected FIGURE without a comparison, such as safety, GS.low or zero_shot:DATASET")
    if found["figure"] in BOTH_DIRECTIONS:
        both = " and ".join(BOTH_DIRECTIONS[found["figure"]])
        raise BadInput(f"{said}: {found['figure']} stands for {both}; write R1_safe for their mean")
    (expression,) = _expressions(found, said)
    return expression


def _requirements(text: str, said: str, has_baseline: bool = True) -> tuple[Requirement, ...]:
    """Read a requirement; `said` begins the errors."""
    found = REQUIREMENT.fullmatch(text)
    if not found:
        raise BadInput(f"{said}: expected FIGURE>=NUMBER, or with <=, > or <, such as GS>=4.5 or top1>=-2%")
    written, unit = found["value"], found["unit"] or ""
    value = float(written)
    if unit and not has_baseline:
        raise BadInput(f"{said}: a change in {unit} needs --baseline MODEL to compare with")
    if found["direction"] and not unit:
        raise BadInput(f"{said}: write {written}pt or {written}% for a change, {written.lstrip('+-')} for percent")
    if unit and value and not found["direction"]:
        raise BadInput(f"{said}: write {written} for percent, +{written}{unit} for a change of so much")
    condition = text[found.end("expression") :].rstrip()
    return tuple(
        Requirement(expression.text + condition, expression, found["sign"], value, unit)
        for expression in _expressions(found, said, unit)
    )


def _expressions(found: re.Match[str], said: str, unit: str = "") -> list[Expression]:
    """What was written before a comparison; `unit` is that of a change."""
    figure, bound = found["figure"], found["bound"] or "mean"
    concept, data_set = found["concept"] or "", found["data_set"] or ""
    if bound != "mean" and (figure in ZERO_SHOT_FIGURES or unit == "%" or (unit and concept)):
        raise BadInput(
            f"{said}: there is no such .{bound}; intervals have SafeGround and retrieval, and their change in pt over "
            "the whole set"
        )
    if (concept and figure in ZERO_SHOT_FIGURES) or (data_set and figure not in ZERO_SHOT_FIGURES):
        raise BadInput(f"{said}: expected FIGURE@CONCEPT of the pairs, or top1:DATASET of --zero-shot")
    rest = found["expression"][len(figure) :]
    return [Expression(name + rest, name, bound, concept, data_set) for name in BOTH_DIRECTIONS.get(figure, [figure])]
