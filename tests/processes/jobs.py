"""Several verbs in one launch: `[torchrun …] jobs.py JOBS` runs the JSON list of their arguments."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from uwm.cli import uwm
from uwm.processes import from_first
from uwm.processes.ending import Ending, is_one_of_several, together


def work() -> Ending:
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        uwm.main(arguments, prog_name="uwm", standalone_mode=False)
        from_first(lambda: None, "the next job")  # it may read what the first process still writes
    return Ending(0)


if is_one_of_several(os.environ):
    together(work, os.environ)
work()
