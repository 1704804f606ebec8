"""Which processes of a group run a verb."""

from __future__ import annotations

import click
import pytest
from processes.threads import together

from uwm.cli.launch import _shared_ending
from uwm.processes import from_first, is_first, several
from uwm.processes.ending import Ending


@pytest.mark.parametrize(
    ("verb", "ran"), [("try", [(False, True), None]), ("eval", [(True, True), (True, False)])], ids=["alone", "shared"]
)
def test_a_verb_that_is_not_shared_is_run_by_the_first_process_by_itself(verb, ran):
    def work(rank):
        found = []

        @click.command()
        @click.argument("arguments", nargs=-1)
        def command(arguments):
            found.append((several(), is_first()))
            from_first(lambda: None, verb)  # as a pass that processes share, for which the others would have to come

        return _shared_ending(command, [verb]), found[0] if found else None

    assert together(2, work) == [(Ending(0), seen) for seen in ran]
