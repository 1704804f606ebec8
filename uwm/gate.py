"""Requirements on figures, which turn an evaluation into a gate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .errors import BadInput
from .evaluate import EvalResult


@dataclass(frozen=True)
class Requirement:
    """A condition on one figure: percent, or (`relative`) percent of change against the baseline."""

    figure: str
    sign: str
    value: float
    relative: bool

    def check(self, result: EvalResult, baseline: EvalResult | None) -> dict[str, Any]:
        """Whether it is met, with what was found. Raises BadInput when the result has no such figure."""
        found = 100 * _figure(result, self.figure)
        if self.relative:
            assert baseline is not None
            base = 100 * _figure(baseline, self.figure)
            if base == 0:
                raise BadInput(
                    f"--require: the baseline's {self.figure} is 0, so no change in % exists; use an absolute bound"
                )
            found = 100 * (found / base - 1)
        met = found >= self.value if self.sign == ">=" else found <= self.value
        text = f"{self.figure}{self.sign}{self.value:g}{'%' if self.relative else ''}"
        return {"requirement": text, "found": found, "met": met}


def parse_requirement(text: str, has_baseline: bool) -> Requirement:
    """Read ``GS>=4.5`` (percent) or ``top1>=-2%`` (change against the baseline). Raises BadInput."""
    parts = re.fullmatch(r"\s*([\w@:.-]+?)\s*(>=|<=)\s*([+-]?\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not parts:
        raise BadInput(f"--require {text!r}: expected FIGURE>=NUMBER or FIGURE<=NUMBER, such as GS>=4.5 or top1>=-2%")
    if parts[4] and not has_baseline:
        raise BadInput(f"--require {text!r}: a change in % needs --baseline MODEL to compare with")
    return Requirement(parts[1], parts[2], float(parts[3]), bool(parts[4]))


def _figure(result: EvalResult, name: str) -> float:
    """A figure by its name; zero-shot figures as ``top1`` (mean over data sets) or ``top1:DATASET``."""
    if name in result.figures:
        return result.figures[name][0]
    key, _, data_set = name.partition(":")
    values = [v[key] for n, v in result.zero_shot.items() if key in v and data_set in ("", n)]
    if not values:
        known = [*result.figures, *sorted({k for v in result.zero_shot.values() for k in v})]
        hint = "; zero-shot figures need --zero-shot FOLDER" if key.startswith("top1") else ""
        raise BadInput(f"--require: no figure {name!r}{hint}; there are {', '.join(known)}")
    return sum(values) / len(values)
