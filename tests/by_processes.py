"""Images are read by processes from the first one on."""

from __future__ import annotations

from uwm.statistics import reading_processes
from uwm.statistics.reading_processes import ReadingProcesses

WAIT = 60  # seconds


def read_by_processes(monkeypatch):
    """Processes are begun by the first call, which waits until they are ready."""
    begin = ReadingProcesses._begin

    def begun(self):
        begin(self)
        self._starter.join(WAIT)

    monkeypatch.setattr(reading_processes, "AFTER", 0)
    monkeypatch.setattr(ReadingProcesses, "_begin", begun)
