"""The mistakes a user can make and the faults a machine can have; each carries its exit code."""

from __future__ import annotations

INTERRUPTED = "uwm: interrupted; nothing was left half-written"
KEPT = "uwm: what was done so far is kept; run the same command again to go on"


class UwmError(Exception):
    """Base of every error that uwm raises on purpose; its text says what, where and what to do.

    Args:
        text: One line.
        command: What a user may paste into a shell, on a line of its own.
    """

    exit_code = 1

    def __init__(self, text: str = "", command: str = "") -> None:
        super().__init__(text)
        self.command = command

    def __str__(self) -> str:
        return "\n".join([*map(str, self.args), *([self.command] if self.command else [])])


class InvalidResult(UwmError):
    """It ran, but the result cannot be used: nothing selected, a hook that never fired, NaN. Nothing is written."""


class NotFinite(InvalidResult):
    """NaN or infinite values of one pair, by its number among those that a tower is fed with."""

    def __init__(self, what: str, tower: str, number: int) -> None:
        super().__init__(f"{what} at pair {number}")
        self.what, self.tower, self.number = what, tower, number

    def __reduce__(self) -> tuple[type, tuple[str, str, int]]:
        """As another process makes it anew."""
        return type(self), (self.what, self.tower, self.number)


class BadInput(UwmError):
    """A file, a set, a setting or a name is wrong."""

    exit_code = 2


class Refused(UwmError):
    """The input is refused as unsafe: a pickle with foreign code, a path that leaves its folder."""

    exit_code = 3


class ResourceFault(UwmError):
    """Disk, memory or device failed."""

    exit_code = 4


class RequirementNotMet(UwmError):
    """The figures are sound and below what was required."""

    exit_code = 5
